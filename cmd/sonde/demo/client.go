package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// request is one prompt that the demo sends.
type request struct {
	ID, Language, Prompt string
	Seed                 uint64
	MaxTokens            int
}

// answer is what the engine said to a request.
type answer struct {
	request
	Text   string
	Reason string // stop, length, abort, ...
}

// client speaks the engine's OpenAI-compatible HTTP interface.
type client struct {
	base  string
	model string
	http  http.Client
}

// answerBytesMax bounds one line of an answer's event stream.
const answerBytesMax = 1 << 20

type chunk struct {
	Choices []struct {
		Text         string  `json:"text"`
		FinishReason *string `json:"finish_reason"`
	} `json:"choices"`
	Error *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// complete sends one request and reads its answer as it is generated; onToken
// is called once per piece of text.
func (c *client) complete(ctx context.Context, r request, onToken func()) (answer, error) {
	body, err := json.Marshal(map[string]any{
		"model": c.model, "prompt": r.Prompt, "max_tokens": r.MaxTokens, "temperature": 0.8, "top_p": 0.95, "seed": r.Seed,
		"stream": true, "sonde": map[string]any{"request_id": r.ID, "tenant": "demo",
			"labels": map[string]string{"language": r.Language}, "opt_in": true}})
	if err != nil {
		panic("BUG: a request does not encode: " + err.Error())
	}
	resp, err := c.post(ctx, "/v1/completions", body)
	if err != nil {
		return answer{}, fmt.Errorf("request %s: %w", r.ID, err)
	}
	defer resp.Body.Close()
	out := answer{request: r}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, answerBytesMax)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var piece chunk
		if err := json.Unmarshal([]byte(data), &piece); err != nil {
			return answer{}, fmt.Errorf("request %s: the engine answered %q: %w", r.ID, clip(data, 80), err)
		}
		if piece.Error != nil {
			return answer{}, fmt.Errorf("request %s: the engine answered: %s", r.ID, piece.Error.Message)
		}
		for _, choice := range piece.Choices {
			out.Text += choice.Text
			if choice.FinishReason != nil {
				out.Reason = *choice.FinishReason
			}
			onToken()
		}
	}
	if err := lines.Err(); err != nil {
		return answer{}, fmt.Errorf("request %s: read the answer: %w", r.ID, err)
	}
	if out.Reason == "" {
		return answer{}, fmt.Errorf("request %s: the engine's answer ended without a finish_reason", r.ID)
	}
	return out, nil
}

func (c *client) post(ctx context.Context, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 400)) // Only for the message; the status already failed.
		return nil, fmt.Errorf("the engine answered %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return resp, nil
}

// get reads a small JSON or text answer whole.
func (c *client) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: the engine answered %s", path, resp.Status)
	}
	return text, err
}

// await waits until the engine answers its health check, or has exited.
func (c *client) await(ctx context.Context, exited <-chan struct{}) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := c.get(ctx, "/healthz"); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the engine at %s: %w", c.base, ctx.Err())
		case <-exited:
			return errors.New("the engine exited before it answered")
		case <-tick.C:
		}
	}
}
