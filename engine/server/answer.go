package server

import (
	"errors"
	"io"
	"net/http"
	"time"

	"sonde/engine/model"
	"sonde/engine/scheduler"
)

// answer tells a client what became of its request.
type answer struct {
	info    *model.Info
	ticket  *scheduler.Ticket
	request *scheduler.Request
	usage   bool // the stream ends with the usage
	tokens  int  // generated, of samples that have ended
}

// choice is one sample in an answer.
type choice struct {
	Index        int     `json:"index"`
	Text         string  `json:"text"`
	Logprobs     *int    `json:"logprobs"` // always null
	FinishReason *string `json:"finish_reason"`
}

// reply is an answer, or one piece of a streamed one.
type reply struct {
	ID      string   `json:"id"`
	Object  string   `json:"object"`
	Created int64    `json:"created"`
	Model   string   `json:"model"`
	Choices []choice `json:"choices"`
	Usage   *usage   `json:"usage,omitempty"`
	Sonde   ids      `json:"sonde"`
}

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
}

type ids struct {
	RequestID string `json:"request_id"`
	EngineID  string `json:"engine_id"`
}

func (a *answer) reply(choices []choice) *reply {
	return &reply{ID: "cmpl-" + a.ticket.EngineID, Object: "text_completion", Created: a.ticket.Created.Unix(),
		Model: a.info.Name, Choices: choices, Sonde: ids{a.request.ID, a.ticket.EngineID}}
}

func (a *answer) used() *usage {
	prompt := len(a.request.Prompt)
	return &usage{prompt, a.tokens, prompt + a.tokens}
}

// whole answers once all samples have ended.
func (a *answer) whole(w http.ResponseWriter, r *http.Request) error {
	choices := make([]choice, a.request.Samples)
	texts := make([][]byte, len(choices))
	for {
		events, err := a.ticket.Next(r.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, e := range events {
			texts[e.Sample] = append(texts[e.Sample], e.Text...)
			if e.Done {
				a.tokens += e.Generated
				choices[e.Sample] = choice{Index: e.Sample, FinishReason: reason(&e)}
			}
		}
	}
	for i := range choices {
		choices[i].Text = string(texts[i])
	}
	out := a.reply(choices)
	out.Usage = a.used()
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // Not every connection has deadlines.
	writeJSON(w, out)
	return nil
}

func reason(e *scheduler.Event) *string {
	s := e.Reason.String()
	return &s
}

// stream answers with server-sent events as text becomes final.
func (a *answer) stream(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	control := http.NewResponseController(w)
	if err := control.Flush(); err != nil {
		return err
	}
	for {
		events, err := a.ticket.Next(r.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		var out []byte
		for i := range events {
			e := &events[i]
			c := choice{Index: e.Sample, Text: e.Text}
			if e.Done {
				a.tokens += e.Generated
				c.FinishReason = reason(e)
			}
			if e.Done || e.Text != "" {
				out = event(out, encode(a.reply([]choice{c})))
			}
		}
		if err := send(w, control, out); err != nil {
			return err
		}
	}
	var out []byte
	if a.usage {
		last := a.reply([]choice{})
		last.Usage = a.used()
		out = event(out, encode(last))
	}
	return send(w, control, event(out, []byte("[DONE]")))
}

// event appends one server-sent event. JSON holds no line breaks.
func event(dst, data []byte) []byte {
	dst = append(dst, "data: "...)
	dst = append(dst, data...)
	return append(dst, "\n\n"...)
}

func send(w io.Writer, control *http.ResponseController, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	_ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) // Not every connection has deadlines.
	if _, err := w.Write(b); err != nil {
		return err
	}
	return control.Flush()
}
