package gauges

import (
	"encoding/json"
	"fmt"
	"os"
)

// Lines is a file of samples, one JSON object a line. At its bound it is renamed to FILE.1, over the one before, and
// begun anew: at most twice the bound is on the disk.
type Lines struct {
	path  string
	bound int64
	file  *os.File
	size  int64
}

// OpenLines goes on with a file. bound is in bytes.
func OpenLines(path string, bound int64) (*Lines, error) {
	l := &Lines{path: path, bound: bound}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Lines) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the file of samples: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("open the file of samples: %w", err)
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write appends samples. After an error the next call tries again; a line that was cut is followed by whole ones.
func (l *Lines) Write(samples []Sample) error {
	var out []byte
	for i := range samples {
		line, err := json.Marshal(&samples[i])
		if err != nil {
			panic("BUG: a sample has no JSON form: " + err.Error())
		}
		out = append(append(out, line...), '\n')
	}
	if l.file != nil && l.size > 0 && l.size+int64(len(out)) > l.bound {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.file == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(out)
	l.size += int64(n)
	if err != nil {
		if n > 0 {
			_, _ = l.file.Write([]byte("\n")) // so that the next line begins as one
		}
		return fmt.Errorf("write samples: %w", err)
	}
	return nil
}

func (l *Lines) rotate() error {
	err := l.file.Close()
	l.file = nil
	if err == nil {
		err = os.Rename(l.path, l.path+".1")
	}
	if err != nil {
		return fmt.Errorf("begin the file of samples anew: %w", err)
	}
	return nil
}

// Close closes the file.
func (l *Lines) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
