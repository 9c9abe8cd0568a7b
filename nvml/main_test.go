package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// quiet is a DGX H100 that tells memory alone.
func quiet() *server.Server {
	s := dgxh100.New()
	no := nvml.ERROR_NOT_SUPPORTED
	for i := range 8 {
		d := s.Devices[i].(*server.Device)
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, no }
		d.GetPcieThroughputFunc = func(nvml.PcieUtilCounter) (uint32, nvml.Return) { return 0, no }
		d.GetPcieReplayCounterFunc = func() (int, nvml.Return) { return 0, no }
		d.GetClockInfoFunc = func(nvml.ClockType) (uint32, nvml.Return) { return 0, no }
		d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 0, no }
		d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 0, no }
		d.GetCurrentClocksEventReasonsFunc = func() (uint64, nvml.Return) { return 0, no }
		d.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 0, no }
	}
	s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) { return nil, no }
	return s
}

func TestItWritesLinesAndServesMetricsUntilItIsStopped(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	out := filepath.Join(t.TempDir(), "gpu.jsonl")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, options{out: out, listen: address, every: 10 * time.Millisecond, bound: 1 << 20}, quiet())
	}()
	defer cancel()
	for !bytes.Contains(get(address), []byte(`sonde_nvml_memory_total_bytes{gpu="7"`)) {
		select {
		case err := <-done:
			t.Fatalf("it ended: %v", err)
		case <-t.Context().Done():
			t.Fatal("the metrics never came")
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(out)
	if err != nil || bytes.Count(data, []byte("\n")) < 8 {
		t.Errorf("%d lines of 8 GPUs; %v", bytes.Count(data, []byte("\n")), err)
	}
}

func get(address string) []byte {
	page, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		return nil
	}
	defer func() { _ = page.Body.Close() }()
	data, _ := io.ReadAll(page.Body)
	return data
}
