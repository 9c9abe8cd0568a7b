package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func engineStub(t *testing.T, answerWith string) *client {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body["stream"] != true {
			t.Errorf("request body: %v, %v", body, err)
		}
		if ours := body["sonde"].(map[string]any); ours["request_id"] != "r1" ||
			ours["labels"].(map[string]any)["language"] != "de" {
			t.Errorf("sonde extension: %v", ours)
		}
		fmt.Fprint(w, answerWith)
	}))
	t.Cleanup(server.Close)
	return &client{base: server.URL, model: "m"}
}

func TestClientReadsAStream(t *testing.T) {
	c := engineStub(t, `data: {"choices":[{"text":"Der ","finish_reason":null}]}`+"\n\n"+
		`data: {"choices":[{"text":"Kern","finish_reason":"abort"}]}`+"\n\ndata: [DONE]\n\n")
	tokens := 0
	got, err := c.complete(context.Background(), request{ID: "r1", Language: "de"}, func() { tokens++ })
	if err != nil || got.Text != "Der Kern" || got.Reason != "abort" || tokens != 2 {
		t.Errorf("got %+v, %d tokens, %v", got, tokens, err)
	}
}

func TestClientNamesABrokenAnswer(t *testing.T) {
	for stream, want := range map[string]string{
		`data: {"choices":[{"text":"Der "}]}` + "\n\n":   "without a finish_reason",
		`data: {"error":{"message":"no room"}}` + "\n\n": "no room",
		"data: {\n\n": "the engine answered",
	} {
		_, err := engineStub(t, stream).complete(context.Background(), request{ID: "r1", Language: "de"}, func() {})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "r1") {
			t.Errorf("stream %q: error %v; want %q", stream, err, want)
		}
	}
}
