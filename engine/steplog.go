package engine

import (
	"fmt"
	"log/slog"
	"os"

	"sonde/engine/scheduler"
)

// stepLog writes one line a step: wall-clock start in nanoseconds since 1970,
// duration in nanoseconds, tokens, sequences.
type stepLog struct {
	file *os.File
	line []byte
	err  error // the first; then nothing more is written
}

func openStepLog(name string) (*stepLog, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the step log: %w", err)
	}
	return &stepLog{file: f}, nil
}

// onStep is for scheduler.Options; nil without a log.
func (l *stepLog) onStep() func(scheduler.StepInfo) {
	if l == nil {
		return nil
	}
	return func(s scheduler.StepInfo) {
		if l.err != nil {
			return
		}
		l.line = fmt.Appendf(l.line[:0], "%d %d %d %d\n", s.Start.UnixNano(), s.Duration.Nanoseconds(), s.Tokens, s.Sequences)
		if _, l.err = l.file.Write(l.line); l.err != nil {
			slog.Error("the step log ends here", "error", l.err)
		}
	}
}

func (l *stepLog) close() error {
	if err := l.file.Close(); l.err == nil {
		l.err = err
	}
	if l.err != nil {
		return fmt.Errorf("write the step log: %w", l.err)
	}
	return nil
}
