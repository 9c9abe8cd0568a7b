package ring2

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// half is one of the two writers of the ring, as a process.
type half struct {
	name string
	// engine captures until it is killed and prints its steps; agent reads such an
	// engine until it is killed.
	engine, agent func(t *testing.T, socket, state string) *child
	// idle starts a writer that has time for the dead.
	idle func(t *testing.T, socket, state string)
}

func libsondeCommand(t *testing.T, program string, args ...string) *exec.Cmd {
	t.Helper()
	return exec.Command(buildLibsonde(t, program), args...)
}

var halves = [...]half{
	{"Go",
		func(t *testing.T, socket, state string) *child {
			return startChild(t, "engine", "SOCKET="+socket, "STATE="+state)
		},
		func(t *testing.T, socket, _ string) *child { return startChild(t, "agent", "SOCKET="+socket) },
		func(t *testing.T, socket, state string) {
			newTestWriter(t, WriterOptions{Socket: socket, StateDir: state})
		}},
	{"C++",
		func(t *testing.T, socket, state string) *child {
			return startCommand(t, libsondeCommand(t, libsondeWriter, socket, "1000000000", "journal="+state, "progress=1",
				"pause_us=20", "detach=1"))
		},
		func(t *testing.T, socket, _ string) *child {
			return startCommand(t, libsondeCommand(t, libsondeReader, socket))
		},
		func(t *testing.T, socket, state string) {
			startCommand(t, libsondeCommand(t, libsondeWriter, socket, "1000000000", "journal="+state, "pause_us=1000"))
		}},
}

// Engine and agent are killed together, at any moment, and nobody has their ring:
// whichever writer comes next tells every record that the dead one put or wanted
// to put into it.
func TestWhatDiesWithEngineAndAgentIsToldByEitherWriter(t *testing.T) {
	rng := seeded(t)
	for _, dead := range halves {
		for _, successor := range halves {
			for range 3 {
				state, wait := t.TempDir(), 1+rng.IntN(8)
				t.Run(fmt.Sprintf("%s after %s", successor.name, dead.name), func(t *testing.T) {
					step := dieTogether(t, &dead, state, wait)
					kept := keptJournal(t, state)
					checkStepsTold(t, kept, step)
					checkToldBy(t, &successor, state, kept)
				})
			}
		}
	}
}

// dieTogether runs an engine and its agent, kills both after some lines of the
// engine, and returns the last step that it committed for sure.
func dieTogether(t *testing.T, h *half, state string, lines int) (step uint64) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	agent := h.agent(t, socket, state)
	engine := h.engine(t, socket, state)
	read := func(line string) {
		if _, err := fmt.Sscanf(line, "step %d", &step); err != nil {
			t.Fatalf("the engine says %q: %v", line, err)
		}
	}
	for range lines {
		read(engine.line(t))
	}
	killBoth := [...]*child{engine, agent}
	if lines%2 == 0 {
		killBoth[0], killBoth[1] = agent, engine
	}
	for _, c := range killBoth {
		c.kill()
	}
	for line := range engine.lines {
		read(line)
	}
	return step
}

// keptJournal is what Go reads in a copy of the only journal of a folder.
func keptJournal(t *testing.T, state string) []Obituary {
	t.Helper()
	kept := t.TempDir()
	if err := os.CopyFS(kept, os.DirFS(state)); err != nil {
		t.Fatal(err)
	}
	return tell(t, kept)
}

// checkStepsTold wants every step from the first to at least last.
func checkStepsTold(t *testing.T, told []Obituary, last uint64) {
	t.Helper()
	next := uint64(0)
	for i, o := range told {
		if end := o.Kind == KindEndOfJournal; end != (i == len(told)-1) {
			t.Errorf("obituary %d of %d is %s", i, len(told), o.Kind)
		}
		if o.Kind != KindStep {
			continue
		}
		s, err := ParseStep(o.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if s.Step != next {
			t.Fatalf("step %d is told after %d steps", s.Step, next)
		}
		next++
	}
	if next <= last {
		t.Errorf("%d steps are told; step %d was committed", next, last)
	}
}

// checkToldBy lets a successor tell the journal in a folder to an agent.
func checkToldBy(t *testing.T, h *half, state string, want []Obituary) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l := listenAt(t, socket)
	h.idle(t, socket, state)
	s := acceptAt(t, l)
	epoch := want[0].DeadEpoch
	got := obituaries(t, s, epoch)
	if len(got) != len(want) || got[0].Flags&ObituaryFirst == 0 {
		t.Fatalf("%d records are told, the first with flags %#x; the journal holds %d", len(got), got[0].Flags, len(want))
	}
	got[0].Flags &^= ObituaryFirst
	for i := range want {
		if g, w := got[i], want[i]; g.Seq != w.Seq || g.Kind != w.Kind || g.Flags != w.Flags ||
			string(g.Payload) != string(w.Payload) {
			t.Fatalf("obituary %d is of record %d, %s, flags %d; want record %d, %s, flags %d", i, g.Seq, g.Kind, g.Flags,
				w.Seq, w.Kind, w.Flags)
		}
	}
	eventually(t, "the told journal is removed", func() bool {
		_, err := os.Stat(filepath.Join(state, journalName(0, epoch)))
		return errors.Is(err, os.ErrNotExist)
	})
}
