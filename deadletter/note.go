package deadletter

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// Subject is where each letter that is kept, or has no room, is broadcast as a Note,
// for those who have no access to the disk. It is outside the stream: nothing that is
// told there is stored, or counted.
const Subject = "sonde.dead"

// Note is what is told of a letter.
type Note struct {
	Name  string `json:"name"` // of the file; empty: there was no room for it
	Host  string `json:"host"`
	Bytes int    `json:"bytes"` // of the message
	Letter
}

// maxText bounds each text of a note, so that it fits a broadcast.
const maxText = 2 << 10

// Tell makes the note of a letter.
func Tell(name string, l Letter) []byte {
	for _, text := range []*string{&l.Reason, &l.Subject, &l.ID, &l.Incarnation} {
		*text = strings.ToValidUTF8((*text)[:min(len(*text), maxText)], "?")
	}
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	out, err := json.Marshal(Note{Name: name, Host: host, Bytes: len(l.Data), Letter: l})
	if err != nil {
		panic("BUG: a note is always JSON: " + err.Error())
	}
	return out
}

// ReadNote reads a note, which may come from anywhere.
func ReadNote(data []byte) (Note, error) {
	var n Note
	if err := json.Unmarshal(data, &n); err != nil {
		return Note{}, fmt.Errorf("read what was told of a dead letter: %w", err)
	}
	return n, nil
}
