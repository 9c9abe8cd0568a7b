package materializer

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sonde/bus"
)

// deadLetters is a bounded folder of messages that could not be decoded. A message
// has a name that follows from its position, so that a redelivery changes nothing.
type deadLetters struct {
	dir  string
	most int64
	size int64
}

// letter is the note beside a message.
type letter struct {
	Incarnation string    `json:"incarnation"`
	Position    uint64    `json:"position"`
	Subject     string    `json:"subject"`
	Stored      time.Time `json:"stored"`
	Reason      string    `json:"reason"`
}

func openDeadLetters(dir string, most int64) (*deadLetters, error) {
	d := &deadLetters{dir: dir, most: most}
	if dir == "" {
		return d, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the dead-letter folder: %w", err)
	}
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) { // somebody tidies up
			return nil
		}
		if err == nil {
			d.size += info.Size()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("measure the dead-letter folder: %w", err)
	}
	return d, nil
}

// put keeps a message and the reason beside it. kept is false when the folder is
// full or there is none, or, with an error, when it cannot be written.
func (d *deadLetters) put(incarnation string, m bus.Delivery, why error) (kept bool, err error) {
	if d.dir == "" {
		return false, nil
	}
	note, err := json.Marshal(letter{incarnation, m.Seq, m.Subject, m.Stored, why.Error()})
	if err != nil {
		return false, err
	}
	name := fmt.Sprintf("%08x-%020d", crc32.ChecksumIEEE([]byte(incarnation)), m.Seq)
	if _, err := os.Lstat(filepath.Join(d.dir, name+".arrow")); err == nil {
		return true, nil // of a delivery before
	}
	size := int64(len(note) + len(m.Data))
	if d.size+size > d.most {
		return false, nil
	}
	if err := d.write(name+".json", note); err != nil { // first: the message's file says that both are there
		return false, err
	}
	if err := d.write(name+".arrow", m.Data); err != nil {
		return false, err
	}
	d.size += size
	return true, nil
}

// write makes a file that is durable when it returns nil.
func (d *deadLetters) write(name string, data []byte) error {
	temp := filepath.Join(d.dir, ".tmp-"+name)
	f, err := os.Create(temp)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, filepath.Join(d.dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	dir, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
