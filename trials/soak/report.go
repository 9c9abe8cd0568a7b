package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
)

// printTable writes one line for each gauge.
func printTable(out io.Writer, verdicts []verdict) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  gauge\tfirst\tmiddle\tlast\tmedian\tgrows by\tallowed\t")
	for i := range verdicts {
		v := &verdicts[i]
		n := len(v.points)
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.name, figure(v.points[0].value), figure(v.points[n/2].value),
			figure(v.points[n-1].value), v.with(v.median), figure(v.drift), figure(v.allowed), v.word())
	}
	w.Flush()
}

func (v *verdict) word() string {
	if v.flat() {
		return "flat"
	}
	return "NOT FLAT"
}

// with writes a value with the unit of the gauge.
func (v *verdict) with(x float64) string { return strings.TrimSpace(figure(x) + " " + v.unit) }

// figure writes three digits, or all before the point.
func figure(x float64) string {
	switch {
	case x >= 100 || x <= -100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10 || x <= -10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

// Sizes of the drawing, in pixels: panels in two columns.
const (
	panelWidth, panelHeight = 560, 170
	plotLeft, plotTop       = 14, 40
	plotWidth, plotHeight   = panelWidth - 2*plotLeft, panelHeight - plotTop - 36
)

// panel is one gauge of the drawing; all coordinates are pixels.
type panel struct {
	X, Y                        int
	Name, Note, Top, End        string
	Flat                        bool
	Line                        string // points of the polyline
	HalfX, HalfW                string
	FromX, FromY, ToX, ToY      string // the slope, over the half that is judged
	Left, PlotTop, Right, PlotB int
}

//go:embed report.svg.tmpl
var drawing string

//go:embed report.html.tmpl
var page string

var templates = template.Must(template.Must(template.New("svg").Parse(drawing)).New("html").Parse(page))

// draw writes soak.svg, and report.html, which holds it and names what was not judged.
func draw(dir, title string, verdicts []verdict, unjudged []string) error {
	panels := make([]panel, len(verdicts))
	flat := true
	for i := range verdicts {
		panels[i] = panelOf(&verdicts[i], i)
		flat = flat && verdicts[i].flat()
	}
	var svg, html bytes.Buffer
	data := map[string]any{"Title": title, "Panels": panels, "Flat": flat, "Unjudged": unjudged, "Width": 2 * panelWidth,
		"Height": (len(panels) + 1) / 2 * panelHeight, "PanelWidth": panelWidth - plotLeft,
		"PanelHeight": panelHeight - plotLeft, "PlotWidth": plotWidth, "PlotHeight": plotHeight}
	if err := templates.ExecuteTemplate(&svg, "svg", data); err != nil {
		return fmt.Errorf("draw soak.svg: %w", err)
	}
	data["SVG"] = template.HTML(svg.String())
	if err := templates.ExecuteTemplate(&html, "html", data); err != nil {
		return fmt.Errorf("write report.html: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "soak.svg"), svg.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write soak.svg: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "report.html"), html.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write report.html: %w", err)
	}
	return nil
}

// panelOf places a gauge. Its axis starts at 0, so that noise looks as small as
// it is.
func panelOf(v *verdict, i int) panel {
	x, y := i%2*panelWidth, i/2*panelHeight
	top := v.allowed
	for _, p := range v.points {
		top = max(top, 1.1*p.value)
	}
	end := v.points[len(v.points)-1].at
	atX := func(p point) float64 {
		return float64(x+plotLeft) + plotWidth*p.at.Seconds()/max(end.Seconds(), 1e-9)
	}
	atY := func(value float64) float64 {
		return float64(y+plotTop) + plotHeight*(1-min(1, max(0, value/max(top, 1e-9))))
	}
	var line strings.Builder
	for _, p := range v.points {
		fmt.Fprintf(&line, "%.1f,%.1f ", atX(p), atY(p.value))
	}
	half := v.points[len(v.points)/2]
	reach := (end - half.at).Seconds() / 2 * v.slope // The line goes through the median, in the middle.
	px := func(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }
	return panel{X: x, Y: y, Name: v.name, Top: v.with(top), End: end.Round(1e9).String(), Flat: v.flat(),
		Note: fmt.Sprintf("%s; grows by %s, allowed %s: %s", v.with(v.median), figure(v.drift), figure(v.allowed), v.word()),
		Line: line.String(), HalfX: px(atX(half)), HalfW: px(float64(x+plotLeft+plotWidth) - atX(half)),
		FromX: px(atX(half)), ToX: px(float64(x + plotLeft + plotWidth)), FromY: px(atY(v.median - reach)),
		ToY: px(atY(v.median + reach)), Left: x + plotLeft, PlotTop: y + plotTop, Right: x + plotLeft + plotWidth,
		PlotB: y + plotTop + plotHeight}
}
