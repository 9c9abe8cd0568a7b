// Package config reads the one YAML file that configures every role of Sonde.
// The file is strict: an unknown key is an error that names the nearest valid
// one. An empty file is a working configuration. CONFIG.md lists every key.
package config

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Config is the whole file. Defaults are those of Default.
type Config struct {
	Bus          Bus          `yaml:"bus"`
	Agent        Agent        `yaml:"agent"`
	Policy       Policy       `yaml:"policy"`
	Materializer Materializer `yaml:"materializer"`
	Detectors    []Detector   `yaml:"detectors"`
	HTTP         HTTP         `yaml:"http"`
	Log          Log          `yaml:"log"`
}

// Bus says where messages go: to a NATS server of one's own at URL, where several
// servers of a cluster stand with commas between them, to a Kafka
// cluster, or to the NATS server inside this binary.
type Bus struct {
	URL          string   `yaml:"url"`
	User         string   `yaml:"user"`
	PasswordFile string   `yaml:"password_file"`
	Embedded     Embedded `yaml:"embedded"`
	NATS         NATS     `yaml:"nats"`
	Kafka        Kafka    `yaml:"kafka"`
	Stream       string   `yaml:"stream"`
	Partitions   int      `yaml:"partitions"` // of the stream
}

// Embedded configures the NATS server inside this binary. It runs only while
// Bus.URL is empty.
type Embedded struct {
	StoreDir    string `yaml:"store_dir"`
	Listen      string `yaml:"listen"` // host:port for other processes; empty: this process only
	Sync        string `yaml:"sync"`   // always | interval
	MaxBytes    Size   `yaml:"max_bytes"`
	RetainBytes Size   `yaml:"retain_bytes"`
}

// NATS says how a NATS server of one's own is used, beside Bus.URL and Bus.User.
type NATS struct {
	Replicas    int    `yaml:"replicas"`     // of a stream that is made; 0: 1
	NKeyFile    string `yaml:"nkey_file"`    // seed of a user key
	CredsFile   string `yaml:"creds_file"`   // JWT and seed
	InboxPrefix string `yaml:"inbox_prefix"` // of answers; empty: _INBOX
	TLS         TLS    `yaml:"tls"`
}

// Kafka configures a Kafka cluster of one's own. It is used when Brokers names one.
type Kafka struct {
	Brokers           []string `yaml:"brokers"` // host:port of some brokers
	MaxBytes          Size     `yaml:"max_bytes"`
	RetainBytes       Size     `yaml:"retain_bytes"`
	Replicas          int      `yaml:"replicas"`            // of a topic that is made; 0: the broker's default
	MinInSyncReplicas int      `yaml:"min_insync_replicas"` // 0: the broker's default
	SASL              string   `yaml:"sasl"`                // none | plain | scram-sha-256 | scram-sha-512
	TLS               TLS      `yaml:"tls"`
}

// TLS says how the broker is known, and how it knows the client.
type TLS struct {
	Enabled  bool   `yaml:"enabled"`
	CAFile   string `yaml:"ca_file"`
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// UsesKafka says whether messages go to a Kafka cluster.
func (b Bus) UsesKafka() bool { return len(b.Kafka.Brokers) > 0 }

// NATSUsesTLS says whether the NATS server of one's own must speak TLS.
func (b Bus) NATSUsesTLS() bool { return b.NATS.TLS.Enabled || strings.Contains(b.URL, "tls://") }

// UsesEmbedded says whether messages go to the NATS server inside this binary.
func (b Bus) UsesEmbedded() bool { return b.URL == "" && !b.UsesKafka() }

// Agent configures the role that moves rows from the rings to the bus.
type Agent struct {
	Socket        string     `yaml:"socket"`
	Wait          string     `yaml:"wait"` // poll | event
	LingerMS      int        `yaml:"linger_ms"`
	BatchBytes    Size       `yaml:"batch_bytes"`
	InflightBytes Size       `yaml:"inflight_bytes"`
	DeadLetter    DeadLetter `yaml:"dead_letter"`
	Spool         Spool      `yaml:"spool"`
}

// SpoolDir is the folder of the spool, empty when there is none.
func (a Agent) SpoolDir() string {
	switch {
	case a.Spool.MaxBytes == 0:
		return ""
	case a.Spool.Dir == "":
		return filepath.Join(a.DeadLetter.Dir, "spool")
	}
	return a.Spool.Dir
}

// Spool is the bounded folder for messages while the bus is away.
type Spool struct {
	Dir            string `yaml:"dir"`       // empty: spool, in the folder of the agent's dead letters
	MaxBytes       Size   `yaml:"max_bytes"` // 0: no spool
	WhenFull       string `yaml:"when_full"` // by_mode | drop_oldest | drop_newest | wait
	AfterMS        int    `yaml:"after_ms"`
	SyncBytes      Size   `yaml:"sync_bytes"`
	SyncIntervalMS int    `yaml:"sync_interval_ms"`
}

// DeadLetter is the bounded folder for messages that the bus can never take.
type DeadLetter struct {
	Dir      string `yaml:"dir"`
	MaxBytes Size   `yaml:"max_bytes"`
}

// Policy chooses what leaves the engine. The first rule that matches a row
// wins; a row that no rule matches is filtered and counted beside the ledger.
type Policy struct {
	Mode            string `yaml:"mode"` // complete | best_effort
	BudgetBytesPerS Size   `yaml:"budget_bytes_per_s"`
	Rules           []Rule `yaml:"rules"`
}

// Rule chooses rows by hook, layer, request and token window.
type Rule struct {
	Name     string   `yaml:"name"`
	Hooks    []string `yaml:"hooks"`
	Layers   Layers   `yaml:"layers"`
	Requests Requests `yaml:"requests"`
	Window   Window   `yaml:"window"`
	As       string   `yaml:"as"` // tensor | stats
	Stride   int      `yaml:"stride"`
	Priority int      `yaml:"priority"`
}

// Requests narrows a rule to some requests; every part that is given must match.
type Requests struct {
	Tenants       []string          `yaml:"tenants"`
	Labels        map[string]string `yaml:"labels"`
	SamplePercent *float64          `yaml:"sample_percent"`
	OptIn         bool              `yaml:"opt_in"`
}

// Window narrows a rule to some tokens of a request.
type Window struct {
	Prompt string `yaml:"prompt"` // all | none | first:N | last:N
	Decode string `yaml:"decode"` // all | none | first:N | every:N
}

// Materializer configures the role that turns the bus into a dataset.
type Materializer struct {
	Lake             string `yaml:"lake"`
	CommitIntervalMS int    `yaml:"commit_interval_ms"`
	CommitBytes      Size   `yaml:"commit_bytes"`
	DeadLetterDir    string `yaml:"dead_letter_dir"`
}

// Detector runs one bundle.
type Detector struct {
	Bundle string `yaml:"bundle"`
	Mode   string `yaml:"mode"` // shadow | alert | enforce
}

// HTTP serves /metrics, /livez and /readyz.
type HTTP struct {
	Listen string `yaml:"listen"` // host:port; empty: no HTTP
}

// Log configures the log on stderr.
type Log struct {
	Level  string `yaml:"level"`  // debug | info | warn | error
	Format string `yaml:"format"` // text | json
}

// Default is what an empty file means: everything in one process, below
// ./data, with the residual stream and the token ids of every token.
func Default() Config {
	return Config{
		Bus: Bus{Stream: "SONDE", Partitions: 1, Embedded: Embedded{StoreDir: "data/bus", Listen: "127.0.0.1:4222",
			Sync: "always", MaxBytes: 8 << 30, RetainBytes: 1 << 30},
			Kafka: Kafka{MaxBytes: 8 << 30, RetainBytes: 1 << 30, SASL: "none"}},
		Agent: Agent{Socket: "data/sonde.sock", Wait: "poll", LingerMS: 250, BatchBytes: 256 << 10,
			InflightBytes: 64 << 20, DeadLetter: DeadLetter{Dir: "data/dead-letter/agent", MaxBytes: 256 << 20},
			Spool: Spool{MaxBytes: 1 << 30, WhenFull: "by_mode", AfterMS: 1000, SyncBytes: 4 << 20, SyncIntervalMS: 50}},
		Policy: Policy{Mode: "best_effort", Rules: []Rule{
			{Name: "residual stream", Hooks: []string{"resid_post", "token_ids"}, Layers: AllLayers(),
				Window: Window{Prompt: "all", Decode: "all"}, As: "tensor", Stride: 1}}},
		Materializer: Materializer{Lake: "data/lake", CommitIntervalMS: 1000, CommitBytes: 64 << 20,
			DeadLetterDir: "data/dead-letter/materializer"},
		HTTP: HTTP{Listen: "127.0.0.1:9464"},
		Log:  Log{Level: "info", Format: "text"},
	}
}

// fillRules gives the rules of a file the defaults that lists cannot inherit. What
// was written stays as it is, so that a wrong zero is not taken for a default.
func (c *Config) fillRules(written func(key string) bool) {
	for i := range c.Policy.Rules {
		r, path := &c.Policy.Rules[i], fmt.Sprintf("policy.rules[%d]", i)
		if r.Name == "" {
			r.Name = fmt.Sprintf("rule %d", i+1)
		}
		if !r.Layers.All && len(r.Layers.Ranges) == 0 {
			r.Layers = AllLayers()
		}
		if !written(path + ".window.prompt") {
			r.Window.Prompt = "all"
		}
		if !written(path + ".window.decode") {
			r.Window.Decode = "all"
		}
		if !written(path + ".as") {
			r.As = "tensor"
		}
		if !written(path + ".stride") {
			r.Stride = 1
		}
	}
	for i := range c.Detectors {
		if !written(fmt.Sprintf("detectors[%d].mode", i)) {
			c.Detectors[i].Mode = "alert"
		}
	}
}

// Problem is one mistake in a file: which key, what stands there, and what to
// write instead.
type Problem struct {
	Line  int
	Key   string
	Value string // as written; empty when the key itself is the mistake
	Want  string // what is wrong and what to write instead
}

// Error lists every mistake of a file, in the order of its lines.
type Error struct {
	File     string
	Problems []Problem
}

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		what := p.Key
		if p.Value != "" {
			what += " = " + p.Value
		}
		lines[i] = fmt.Sprintf("%s:%d: %s: %s", e.File, p.Line, what, p.Want)
	}
	return strings.Join(lines, "\n")
}
