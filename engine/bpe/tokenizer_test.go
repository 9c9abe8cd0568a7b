package bpe

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const tokenizerFile = "../../models/trilingual/tokenizer.json"

func load(t testing.TB) *Tokenizer {
	t.Helper()
	tok, err := Load(tokenizerFile)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestIdsAndTextEqualThoseOfHuggingFace(t *testing.T) {
	tok := load(t)
	b, err := os.ReadFile("testdata/tokenizer_vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Encode []struct {
			Text    string  `json:"text"`
			IDs     []int32 `json:"ids"`
			Decoded string  `json:"decoded"`
		} `json:"encode"`
		Decode []struct {
			IDs     []int32 `json:"ids"`
			Decoded string  `json:"decoded"`
		} `json:"decode"`
	}
	if err := json.Unmarshal(b, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Encode) < 390 || len(vectors.Decode) < 80 {
		t.Fatalf("only %d and %d vectors", len(vectors.Encode), len(vectors.Decode))
	}
	for _, v := range vectors.Encode {
		if got := tok.Encode(v.Text); !slices.Equal(got, v.IDs) {
			t.Errorf("%q is %v, at Hugging Face %v", v.Text, got, v.IDs)
		}
		if got := tok.Decode(v.IDs); got != v.Decoded {
			t.Errorf("%v is %q, at Hugging Face %q", v.IDs, got, v.Decoded)
		}
	}
	for _, v := range vectors.Decode {
		if got := tok.Decode(v.IDs); got != v.Decoded {
			t.Errorf("%v is %q, at Hugging Face %q", v.IDs, got, v.Decoded)
		}
	}
}

func TestAStreamIsNeverCutInsideACharacterAndLosesNothing(t *testing.T) {
	tok := load(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 3000 {
		ids := make([]int32, r.IntN(20))
		for i := range ids {
			ids[i] = int32(r.IntN([]int{260, tok.Size()}[r.IntN(2)]))
		}
		if r.IntN(2) == 0 {
			ids = tok.Encode("日本語 🙂 é größer")[:1+r.IntN(12)]
		}
		var text string
		d := tok.NewDecoder()
		for _, id := range ids {
			piece := d.Next(id)
			if !utf8.ValidString(piece) {
				t.Fatalf("token %d of %v gives %q", id, ids, piece)
			}
			text += piece
		}
		text += d.Flush()
		if want := tok.Decode(ids); text != want {
			t.Fatalf("%v streams as %q, at once %q", ids, text, want)
		}
		if d.Flush() != "" {
			t.Fatal("a second flush gives text")
		}
	}
}

func TestBytesThatAreNotTextBecomeReplacementCharacters(t *testing.T) {
	tok := load(t)
	for in, want := range map[string]string{
		"a\xffb":           "a\ufffdb",
		"\xe2\x82":         "\ufffd",
		"\xe2\x82x":        "\ufffdx",
		"\xf0\x9f\x99":     "\ufffd",
		"\xf0\x80":         "\ufffd\ufffd",
		"\xed\xa0\x80":     "\ufffd\ufffd\ufffd",
		"\xc3\xc3\xa9":     "\ufffdé",
		"\xf4\x90\x80\x80": "\ufffd\ufffd\ufffd\ufffd",
	} {
		if got := tok.Decode(tok.Encode(in)); got != want {
			t.Errorf("%q comes back as %q instead of %q", in, got, want)
		}
	}
}

func TestIdsThatDoNotExistAreLeftOut(t *testing.T) {
	tok := load(t)
	if got := tok.Decode([]int32{-1, 66, 1 << 30, int32(tok.Size())}); got != tok.Decode([]int32{66}) {
		t.Errorf("text %q", got)
	}
}

func TestAWordOfALongPromptIsEncoded(t *testing.T) {
	tok := load(t)
	for _, text := range []string{strings.Repeat("a", 1<<18), strings.Repeat(" ", 1<<18), strings.Repeat("er", 1<<17)} {
		if got := tok.Decode(tok.Encode(text)); got != text {
			t.Errorf("%q... came back with %d bytes", text[:10], len(got))
		}
	}
}

func TestFilesThatAskForOtherIdsAreRefused(t *testing.T) {
	b, err := os.ReadFile(tokenizerFile)
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	for _, c := range []struct{ after, old, new, want string }{
		{"", `"type": "BPE"`, `"type": "WordPiece"`, "WordPiece"},
		{"", `"byte_fallback": false`, `"byte_fallback": true`, "fallbacks"},
		{"", `"dropout": null`, `"dropout": 0.1`, "dropout"},
		{"", `"normalizer": null`, `"normalizer": {"type": "NFC"}`, "normalizer"},
		{"", `"post_processor": null`, `"post_processor": {"type": "TemplateProcessing"}`, "post-processor"},
		{"", `"add_prefix_space": false`, `"add_prefix_space": true`, "pre-tokenizer"},
		{"", `"use_regex": true`, `"use_regex": false`, "pre-tokenizer"},
		{`"decoder"`, `"ByteLevel"`, `"WordPiece"`, "decoder"},
		{"", `"lstrip": false`, `"lstrip": true`, "strips spaces"},
		{"", `"id": 0,`, `"id": -1,`, "-1"},
		{"", `"id": 0,`, `"id": 2000000000,`, "2000000000"},
		{"", `"id": 0,`, `"id": 7,`, "taken"},
		{"", `"!": 1,`, `"!!!": 1,`, "byte 33"},
		{"", `"!": 1,`, `"!": 2,`, "taken"},
		{"", `"!": 1,`, `"!": 1, "": 4097,`, "no text"},
		{`"merges"`, `"e",`, `"e", "r", "r",`, "not a pair"},
		{`"merges"`, `"e",`, `"qqqq",`, "no token"},
		{"", `{`, `[`, "JSON"},
	} {
		before, rest, ok := strings.Cut(good, c.after)
		head, tail, ok2 := strings.Cut(rest, c.old)
		if !ok || !ok2 {
			t.Fatalf("the tokenizer has no %s after %s", c.old, c.after)
		}
		_, err := Parse([]byte(before + c.after + head + c.new + tail))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s for %s: error %v does not say %q", c.new, c.old, err, c.want)
		}
	}
	if _, err := Load("testdata/none.json"); err == nil || !strings.Contains(err.Error(), "none.json") {
		t.Errorf("error %v does not name the file", err)
	}
}

func TestMergesWrittenAsTextAreReadToo(t *testing.T) {
	b, err := os.ReadFile(tokenizerFile)
	if err != nil {
		t.Fatal(err)
	}
	var f map[string]any
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	list := f["model"].(map[string]any)["merges"].([]any)
	for i, m := range list {
		list[i] = m.([]any)[0].(string) + " " + m.([]any)[1].(string)
	}
	if b, err = json.Marshal(f); err != nil {
		t.Fatal(err)
	}
	old, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	const text = "La gestion des paquets, die Paketverwaltung and package management."
	if got, want := old.Encode(text), load(t).Encode(text); !slices.Equal(got, want) {
		t.Errorf("ids %v instead of %v", got, want)
	}
}

func FuzzRoundTrip(f *testing.F) {
	tok := load(f)
	for _, s := range []string{"", "it's  the\n\n end ", "<|endoftext|>x<|endof", "日本語\u00a0🙂", "e\u0301 \t\r\n",
		"\xff\xfe", "'ll 've''s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ids := tok.Encode(text)
		want := text
		if !utf8.ValidString(text) {
			want = tok.Decode(tok.Encode(text)) // only: no panic, and UTF-8
			if !utf8.ValidString(want) {
				t.Fatalf("%q decodes to %q", text, want)
			}
		}
		if got := tok.Decode(ids); got != want {
			t.Fatalf("%q comes back as %q", text, got)
		}
		for _, id := range ids {
			if id < 0 || int(id) >= tok.Size() {
				t.Fatalf("id %d of %q", id, text)
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	tok := load(b)
	text := strings.Repeat("Die Paketverwaltung prüft zuerst, ob alle Abhängigkeiten erfüllt sind. ", 20)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		tok.Encode(text)
	}
}
