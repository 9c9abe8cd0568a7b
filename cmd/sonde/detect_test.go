package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"sonde/consumers/detector"
)

func detect(args ...string) (out string, err error) {
	var text bytes.Buffer
	c := detectCommand()
	c.SetArgs(args)
	c.SetOut(&text)
	c.SetErr(&text)
	c.SilenceUsage = true
	err = c.Execute()
	return text.String(), err
}

func TestDetectExplainsAndTestsABundle(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bundle")
	_, err := detector.Write(dir, detector.Draft{
		Manifest: detector.Manifest{Name: "german", Version: "3", Description: "Is this German?",
			Binding: detector.Binding{ModelWeights: "sha256:abc", Quantisation: "none", Adapter: "none", Hook: "resid_post",
				Layer: 2, DType: "bf16", Width: 2, Phase: "decode"},
			Feature: detector.Feature{Kind: "linear"}, Aggregation: detector.Aggregation{Kind: "ema", HalfLife: 8},
			Levels: []detector.Level{{Name: "stop", Threshold: 1.5, FalseAlarmRate: 0.01, Measured: detector.Measured{
				CleanRequests: 300, UpperBound95: 0.0099, Positives: 20, Detected: 19}}},
			Limits: detector.Limits{MaxStopRate: 0.5}},
		Probe: detector.Probe{DType: "bf16", Weight: []float32{1, -1}}, Rows: [][]byte{{0x80, 0x3f, 0x80, 0xbf}}})
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"show": "0 of 300 clean requests (at most 0.99 % with 95 % confidence), 19 of 20 positive ones found",
		"test": "1 rows scored as expected",
	} {
		if out, err := detect(args, dir); err != nil || !strings.Contains(out, want) {
			t.Errorf("detect %s prints %q: %v", args, out, err)
		}
		if _, err := detect(args, t.TempDir()); err == nil || !strings.Contains(err.Error(), "is no detector bundle") {
			t.Errorf("detect %s of an empty folder: %v", args, err)
		}
	}
}

func TestDetectTrainTellsMistakesOfTheCallerApart(t *testing.T) {
	dir := t.TempDir()
	right := []string{"train", "--layer", "2", "--positive", "language=de", "--name", "german", "--lake", dir, "--out",
		filepath.Join(dir, "bundle")}
	for want, more := range map[string][]string{
		"is not written key=value":    {"--positive", "german"},
		"--negative":                  {"--negative", "x"},
		"--aggregation":               {"--aggregation", "median"},
		"false-alarm rate 2":          {"--false-alarm", "2"},
		`name "Not A Name"`:           {"--name", "Not A Name"},
		"not empty":                   {"--out", "."},
		`phase "everything"`:          {"--phase", "everything"},
		"positive and negative reque": {"--negative", "language=de"},
	} {
		_, err := detect(append(append([]string{}, right...), more...)...)
		var usage usageError
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &usage) {
			t.Errorf("want a usage error with %q, got %v", want, err)
		}
	}
	var usage usageError
	if _, err := detect(right...); err == nil || errors.As(err, &usage) {
		t.Errorf("a folder without a dataset is no mistake of the command line: %v", err)
	}
}
