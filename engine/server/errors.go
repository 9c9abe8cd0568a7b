package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"sonde/engine/scheduler"
)

// failure is an error as OpenAI's clients expect it.
type failure struct {
	status                     int
	message, kind, param, code string
}

func (f *failure) Error() string { return f.message }

// Kinds of errors.
const (
	kindInvalid = "invalid_request_error"
	kindLimit   = "rate_limit_error"
	kindServer  = "server_error"
)

// invalid refuses a parameter.
func invalid(param, format string, args ...any) *failure {
	return &failure{status: http.StatusBadRequest, message: fmt.Sprintf(format, args...), kind: kindInvalid, param: param}
}

// refusal turns an error of the scheduler into an answer.
func refusal(err error) *failure {
	f := &failure{status: http.StatusInternalServerError, message: err.Error(), kind: kindServer}
	switch {
	case errors.Is(err, scheduler.ErrInvalid):
		f.status, f.kind = http.StatusBadRequest, kindInvalid
	case errors.Is(err, scheduler.ErrDuplicate):
		f.status, f.kind, f.param, f.code = http.StatusConflict, kindInvalid, "sonde.request_id", "duplicate_request_id"
	case errors.Is(err, scheduler.ErrBusy):
		f.status, f.kind = http.StatusTooManyRequests, kindLimit
	case errors.Is(err, scheduler.ErrStopping):
		f.status = http.StatusServiceUnavailable
	}
	return f
}

// body is the JSON form, with null for what is not there.
func (f *failure) body() []byte {
	optional := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	return encode(map[string]any{"error": map[string]any{"message": f.message, "type": f.kind,
		"param": optional(f.param), "code": optional(f.code)}})
}

func (f *failure) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	if f.status == http.StatusTooManyRequests || f.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(f.status)
	_, _ = w.Write(f.body()) // A client that is gone needs no answer.
}

// encode is JSON of our own values, which always have one.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("BUG: an answer does not encode: " + err.Error())
	}
	return b
}
