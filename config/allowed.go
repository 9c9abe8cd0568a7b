package config

import (
	"fmt"
	"regexp"
)

// What may stand in a key. The checks and the JSON Schema both read these tables,
// so that an editor says what sonde validate says.

// words lists the values of keys that take one of a few words.
var words = map[string][]string{
	"bus.embedded.sync":     {"always", "interval"},
	"bus.kafka.sasl":        {"none", "plain", "scram-sha-256", "scram-sha-512"},
	"agent.wait":            {"poll", "event"},
	"agent.spool.when_full": {"by_mode", "drop_newest", "drop_oldest", "wait"},
	"policy.mode":           {"complete", "best_effort"},
	"policy.rules[].as":     {"tensor", "stats"},
	"detectors[].mode":      {"shadow", "alert", "enforce"},
	"log.level":             {"debug", "info", "warn", "error"},
	"log.format":            {"text", "json"},
}

// ranges holds the smallest and the largest value of whole numbers.
var ranges = map[string][2]int{
	"bus.partitions":                  {1, 256},
	"bus.nats.replicas":               {0, 5},
	"bus.kafka.replicas":              {0, 100},
	"bus.kafka.min_insync_replicas":   {0, 100},
	"agent.linger_ms":                 {1, 60_000},
	"agent.spool.after_ms":            {10, 600_000},
	"agent.spool.sync_interval_ms":    {1, 10_000},
	"policy.rules[].stride":           {1, 1_000_000},
	"policy.rules[].priority":         {-1_000_000, 1_000_000},
	"materializer.commit_interval_ms": {10, 3_600_000},
}

var (
	// hookPattern is what a hook glob may hold: names like resid_post, * and ?.
	hookPattern   = regexp.MustCompile(`^[A-Za-z0-9_.*?\[\]-]+$`)
	streamPattern = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
)

// port is a number from 0 to 65535.
const port = `(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[0-5]?[0-9]{1,4})`

// patterns are what texts must look like, in the regular expressions of JSON
// Schema. They are for editors and refuse nothing that the checks allow.
var patterns = map[string]string{
	"bus.url": `^((nats|tls)://[^@/:,]+(:` + port + `)?/?(,(nats|tls)://[^@/:,]+(:` + port +
		`)?/?)*)?$`,
	"bus.nats.inbox_prefix":        `^([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)?$`,
	"bus.stream":                   streamPattern.String(),
	"bus.embedded.store_dir":       `.`,
	"bus.embedded.listen":          `^(.*:` + port + `)?$`,
	"bus.kafka.brokers[]":          `^.+:` + port + `$`,
	"agent.socket":                 `^.{1,100}$`,
	"agent.dead_letter.dir":        `.`,
	"policy.rules[].hooks[]":       hookPattern.String(),
	"policy.rules[].window.prompt": `^(all|none|(first|last):0*[1-9][0-9]*)$`,
	"policy.rules[].window.decode": `^(all|none|(first|every):0*[1-9][0-9]*)$`,
	"materializer.lake":            `.`,
	"materializer.dead_letter_dir": `.`,
	"detectors[].bundle":           `.`,
	"http.listen":                  `^(.*:` + port + `)?$`,
}

// needed are the keys that a block cannot do without.
var needed = map[string][]string{
	"bus.kafka":      {"brokers"},
	"policy.rules[]": {"hooks"},
	"detectors[]":    {"bundle"},
}

var index = regexp.MustCompile(`\[[0-9]+\]`)

// generic is the key of a value in a list: policy.rules[3].as is policy.rules[].as.
func generic(path string) string { return index.ReplaceAllString(path, "[]") }

func rangeHint(path string) string {
	r := ranges[generic(path)]
	return fmt.Sprintf("write %d to %d", r[0], r[1])
}
