package catalogue

import (
	"fmt"
	"strings"
)

const pageHead = `# Metrics and health

<!-- Written by go generate ./catalogue from catalogue/catalogue.go. -->

Names of metrics end in their unit. A label without values listed takes them from outside. Each process also exports
the usual ` + "`go_` and `process_`" + ` metrics of its runtime.

## Endpoints

` + "`sonde run` serves at `http.listen`, `sonde engine` at `--listen`" + `.

| path | of | answer |
|---|---|---|
`

const pageChecks = `
## Checks of /readyz

A process asks about the parts that it runs, and about the bus.

| part | ready when | to do when it stays otherwise |
|---|---|---|
`

// Page is METRICS.md.
func Page() string {
	var out strings.Builder
	out.WriteString(pageHead)
	for _, e := range Endpoints {
		fmt.Fprintf(&out, "| `%s` | %s | %s |\n", e.Path, e.Server, e.Help)
	}
	out.WriteString(pageChecks)
	for _, c := range Checks {
		fmt.Fprintf(&out, "| %s | %s | %s |\n", c.Part, c.Holds, c.Do)
	}
	for _, s := range Sections {
		fmt.Fprintf(&out, "\n## %s\n\n", s.Name)
		if s.Note != "" {
			out.WriteString(s.Note + "\n\n")
		}
		out.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
		for i := range s.Metrics {
			m := &s.Metrics[i]
			fmt.Fprintf(&out, "| `%s` | %s |%s | %s |\n", m.Name, m.Type, m.labelText(), m.Help)
		}
	}
	return out.String()
}

func (m *Metric) labelText() string {
	var out []string
	for _, l := range m.Labels {
		text := "`" + l.Name + "`"
		if len(l.Values) > 0 {
			text += ": `" + strings.Join(l.Values, "`, `") + "`"
		}
		out = append(out, text)
	}
	if out == nil {
		return ""
	}
	return " " + strings.Join(out, "; ")
}
