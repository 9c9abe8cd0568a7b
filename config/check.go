package config

import (
	"fmt"
	"net"
	pathpkg "path"
	"path/filepath"
	"strconv"
	"strings"
)

// check looks at the meaning of values whose shape is right.
func (w *walk) check(c Config) {
	w.checkBus(c.Bus)
	w.checkAgent(c.Agent)
	w.oneOf("policy.mode", c.Policy.Mode)
	w.least("policy.budget_bytes_per_s", int64(c.Policy.BudgetBytesPerS), 0)
	for i, r := range c.Policy.Rules {
		w.checkRule(fmt.Sprintf("policy.rules[%d]", i), r)
	}
	w.required("materializer.lake", c.Materializer.Lake)
	w.required("materializer.dead_letter_dir", c.Materializer.DeadLetterDir)
	w.between("materializer.commit_interval_ms", c.Materializer.CommitIntervalMS)
	w.least("materializer.commit_bytes", int64(c.Materializer.CommitBytes), 64<<10)
	for i, d := range c.Detectors {
		path := fmt.Sprintf("detectors[%d]", i)
		if d.Bundle == "" {
			w.missing(path, path+".bundle", "a detector without a bundle; write its folder, like bundle: detectors/german")
		}
		w.oneOf(path+".mode", d.Mode)
	}
	w.address("http.listen", c.HTTP.Listen)
	w.oneOf("log.level", c.Log.Level)
	w.oneOf("log.format", c.Log.Format)
	w.ownFolders(c)
}

func (w *walk) checkBus(b Bus) {
	if !streamPattern.MatchString(b.Stream) {
		w.wrong("bus.stream", "not a stream name; write letters, digits, - and _, like SONDE")
	}
	w.between("bus.partitions", b.Partitions)
	w.checkNATS(b)
	if b.URL == "" && !b.UsesKafka() && (b.User != "" || b.PasswordFile != "") {
		w.missing("bus", "bus.user", "a login without bus.url; the embedded bus has none, so write bus.url or remove it")
	}
	w.checkKafka(b)
	e := b.Embedded
	w.required("bus.embedded.store_dir", e.StoreDir)
	w.oneOf("bus.embedded.sync", e.Sync)
	w.address("bus.embedded.listen", e.Listen)
	w.least("bus.embedded.max_bytes", int64(e.MaxBytes), 16<<20)
	if e.RetainBytes > e.MaxBytes {
		w.wrong("bus.embedded.retain_bytes", fmt.Sprintf("more than bus.embedded.max_bytes = %s; write less", e.MaxBytes))
	}
}

func (w *walk) checkAgent(a Agent) {
	w.required("agent.socket", a.Socket)
	if len(a.Socket) > 100 {
		w.wrong("agent.socket", "longer than the 100 bytes that a unix socket can have; write a shorter path")
	}
	w.oneOf("agent.wait", a.Wait)
	w.between("agent.linger_ms", a.LingerMS)
	w.least("agent.batch_bytes", int64(a.BatchBytes), 4<<10)
	if a.BatchBytes > 8<<20 {
		w.wrong("agent.batch_bytes", "more than 8MiB, the largest message that the bus takes; write 64KiB to 1MiB")
	}
	w.least("agent.inflight_bytes", int64(a.InflightBytes), int64(a.BatchBytes))
	w.required("agent.dead_letter.dir", a.DeadLetter.Dir)
	w.least("agent.dead_letter.max_bytes", int64(a.DeadLetter.MaxBytes), 0)
	w.oneOf("agent.spool.when_full", a.Spool.WhenFull)
	w.between("agent.spool.after_ms", a.Spool.AfterMS)
	w.between("agent.spool.sync_interval_ms", a.Spool.SyncIntervalMS)
	w.least("agent.spool.sync_bytes", int64(a.Spool.SyncBytes), 64<<10)
	// What the bus has in its hands when it goes away cannot be discarded.
	if least := 2 * a.InflightBytes; a.Spool.MaxBytes > 0 && a.Spool.MaxBytes < least {
		w.wrong("agent.spool.max_bytes", fmt.Sprintf("too small; write at least %s, twice agent.inflight_bytes, or 0 for no "+
			"spool", least))
	}
}

func (w *walk) checkRule(path string, r Rule) {
	if len(r.Hooks) == 0 {
		w.missing(path, path+".hooks", "a rule without hooks chooses nothing; write hooks: [resid_post]")
	}
	for i, h := range r.Hooks {
		if _, err := pathpkg.Match(h, ""); err != nil || !hookPattern.MatchString(h) {
			w.wrong(fmt.Sprintf("%s.hooks[%d]", path, i), `not a hook name; write one like resid_post, or a pattern like "*_out"`)
		}
	}
	w.oneOf(path+".as", r.As)
	w.between(path+".stride", r.Stride)
	w.between(path+".priority", r.Priority)
	if err := parseWindow(r.Window.Prompt, "first", "last"); err != nil {
		w.wrong(path+".window.prompt", err.Error())
	}
	if err := parseWindow(r.Window.Decode, "first", "every"); err != nil {
		w.wrong(path+".window.decode", err.Error())
	}
	if p := r.Requests.SamplePercent; p != nil && (*p < 0 || *p > 100) {
		w.wrong(path+".requests.sample_percent", "not a percentage; write 0 to 100")
	}
}

// wrong reports the value at a path. A default is never wrong, so the path was
// written by the user, or a block above it was.
func (w *walk) wrong(path, want string) { w.missing(path, path, want) }

// missing reports a key that may be absent, at the line of the block above it.
func (w *walk) missing(at, key, want string) {
	n, value := 0, w.values[key]
	for p := at; n == 0; {
		n = w.lines[p]
		if i := strings.LastIndexAny(p, ".["); i >= 0 {
			p = p[:i]
		} else if n == 0 {
			n = 1
		}
	}
	w.problems = append(w.problems, Problem{Line: n, Key: key, Value: harmless(value),
		Want: want + foreign(value)})
}

// secret is wrong without showing the value, which must not reach a log.
func (w *walk) secret(path, want string) {
	w.values[path] = "(hidden)"
	w.wrong(path, want)
}

func (w *walk) oneOf(path, value string) {
	allowed := words[generic(path)]
	for _, a := range allowed {
		if value == a {
			return
		}
	}
	want := "write " + strings.Join(allowed, ", ")
	if i := strings.LastIndex(want, ", "); i >= 0 {
		want = want[:i] + " or " + want[i+2:]
	}
	if best := nearest(value, allowed); best != "" {
		want = "write " + best + " (allowed: " + strings.Join(allowed, ", ") + ")"
	}
	w.wrong(path, "not allowed; "+want)
}

func (w *walk) required(path, value string) {
	if value == "" {
		w.wrong(path, "empty; write a path, or remove the key for its default")
	}
}

func (w *walk) between(path string, value int) {
	if r := ranges[generic(path)]; value < r[0] || value > r[1] {
		w.wrong(path, "out of range; "+rangeHint(path))
	}
}

func (w *walk) least(path string, value, low int64) {
	if value < low {
		w.wrong(path, fmt.Sprintf("too small; write at least %s", Size(low)))
	}
}

func (w *walk) address(path, value string) {
	if value == "" {
		return
	}
	_, port, err := net.SplitHostPort(value)
	if n, portErr := strconv.Atoi(port); err != nil || portErr != nil || n < 0 || n > 65535 {
		w.wrong(path, `not an address; write host:port like 127.0.0.1:9464, or "" for none`)
	}
}

// ownFolders refuses a dataset or a bus in the folder of something else: each takes
// what lies there for its own. The two dead-letter folders may be one.
func (w *walk) ownFolders(c Config) {
	store, lake := filepath.Clean(c.Bus.Embedded.StoreDir), filepath.Clean(c.Materializer.Lake)
	if lake == store {
		w.wrong("materializer.lake", "the folder of bus.embedded.store_dir too; write another one")
	}
	folders := map[string]string{"agent.dead_letter.dir": c.Agent.DeadLetter.Dir,
		"materializer.dead_letter_dir": c.Materializer.DeadLetterDir}
	if dir := c.Agent.SpoolDir(); dir != "" {
		for _, other := range []string{"agent.dead_letter.dir", "materializer.dead_letter_dir"} {
			if filepath.Clean(dir) == filepath.Clean(folders[other]) {
				w.wrong("agent.spool.dir", fmt.Sprintf("the folder of %s too; write another one", other))
			}
		}
		folders["agent.spool.dir"] = dir
	}
	for key, dir := range folders {
		switch filepath.Clean(dir) {
		case lake:
			w.wrong(key, "the folder of materializer.lake too; write another one")
		case store:
			w.wrong(key, "the folder of bus.embedded.store_dir too; write another one")
		}
	}
}
