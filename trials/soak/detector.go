package main

import (
	"path/filepath"

	"sonde/consumers/detector"
	"sonde/engine/arithmetic"
)

// writeDetector makes a bundle for the arithmetic model. Its verdicts mean
// nothing: it scores each generated token by the first element of its row, and warns
// about the few requests with two large ones close together.
func writeDetector(dir string) (string, error) {
	const hook, layer = "resid_post", 1
	weight := make([]float32, arithmetic.DModel)
	weight[0] = 1
	one := make([]byte, 2*arithmetic.DModel)
	one[0], one[1] = 0x80, 0x3f // 1 as bf16
	b, err := detector.Write(filepath.Join(dir, "detector"), detector.Draft{
		Manifest: detector.Manifest{Name: "soak", Version: "1", Description: "Something to compute for each token.",
			Binding: detector.Binding{ModelWeights: detector.Any, Quantisation: detector.Any, Adapter: detector.Any, Hook: hook,
				Layer: layer, DType: "bf16", Width: arithmetic.DModel, Phase: detector.PhaseDecode},
			Feature: detector.Feature{Kind: "linear"}, Aggregation: detector.Aggregation{Kind: "ema", HalfLife: 4},
			Levels: []detector.Level{{Name: detector.LevelWarn, Threshold: 50, FalseAlarmRate: 0.2}},
			Limits: detector.Limits{MaxStopRate: 1}},
		Probe: detector.Probe{DType: "bf16", Weight: weight}, Rows: [][]byte{one, make([]byte, len(one))}})
	if err != nil {
		return "", err
	}
	return b.Dir, nil
}
