package gauges

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// machine is a DGX A100 whose GPU i is busy for i percent; broken GPUs tell nothing but who they are.
func machine(events chan nvml.EventData, broken ...int) *dgxa100.Server {
	s := dgxa100.New()
	for i := range 8 {
		d := s.Devices[i].(*dgxa100.Device)
		r := nvml.SUCCESS
		for _, b := range broken {
			if i == b {
				r = nvml.ERROR_NOT_SUPPORTED
			}
		}
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) {
			return nvml.Utilization{Gpu: uint32(i), Memory: uint32(i) * 2}, r
		}
		d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{Used: 5 << 30, Total: 40 << 30}, r }
		d.GetPcieThroughputFunc = func(c nvml.PcieUtilCounter) (uint32, nvml.Return) { return 1000 + uint32(c), r }
		d.GetPcieReplayCounterFunc = func() (int, nvml.Return) { return 3, r }
		d.GetClockInfoFunc = func(c nvml.ClockType) (uint32, nvml.Return) { return 1000 + uint32(c), r }
		d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 250500, r }
		d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 0, r }
		d.GetCurrentClocksEventReasonsFunc = func() (uint64, nvml.Return) { return 4, r }
		d.GetTotalEccErrorsFunc = func(k nvml.MemoryErrorType, _ nvml.EccCounterType) (uint64, nvml.Return) {
			return 10 + uint64(k), r
		}
		d.RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return r }
	}
	s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) {
		return &mock.EventSet{
			WaitFunc: func(ms uint32) (nvml.EventData, nvml.Return) {
				select {
				case e := <-events:
					return e, nvml.SUCCESS
				case <-time.After(time.Duration(ms) * time.Millisecond / 50):
					return nvml.EventData{}, nvml.ERROR_TIMEOUT
				}
			},
			FreeFunc: func() nvml.Return { return nvml.SUCCESS },
		}, nvml.SUCCESS
	}
	return s
}

func open(t *testing.T, lib nvml.Interface) *Source {
	t.Helper()
	s, err := Open(lib, "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestEachGPUHasItsOwnValues(t *testing.T) {
	got := open(t, machine(nil)).Read(time.Unix(0, 77))
	if len(got) != 8 {
		t.Fatalf("%d samples of 8 GPUs", len(got))
	}
	seen := map[string]bool{}
	for i, s := range got {
		if s.GPU != i || *s.Busy != uint32(i) || *s.MemoryBusy != 2*uint32(i) || s.WallNS != 77 || s.Host != "h" {
			t.Errorf("GPU %d: %+v", i, s)
		}
		if *s.PCIeOut != 1000<<10 || *s.PCIeIn != 1001<<10 || *s.SMClock != 1001 || *s.MemoryClock != 1002 {
			t.Errorf("GPU %d: PCIe %d, %d; clocks %d, %d", i, *s.PCIeOut, *s.PCIeIn, *s.SMClock, *s.MemoryClock)
		}
		if *s.ECCFixed != 10 || *s.ECCBroken != 11 || *s.Throttled != 4 || *s.Temperature != 0 || *s.XIDs != 0 {
			t.Errorf("GPU %d: %+v", i, s)
		}
		seen[s.UUID] = true
	}
	if len(seen) != 8 {
		t.Errorf("%d different UUIDs", len(seen))
	}
}

func TestWhatAGPUDoesNotTellIsAbsentAndNot0(t *testing.T) {
	got := open(t, machine(nil, 3)).Read(time.Unix(0, 1))
	line, err := json.Marshal(got[3])
	if err != nil {
		t.Fatal(err)
	}
	var keys map[string]any
	if err := json.Unmarshal(line, &keys); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"wall_ns", "host", "gpu", "uuid", "name", "driver"} {
		delete(keys, k)
	}
	if len(keys) != 0 {
		t.Errorf("a GPU that tells nothing has %v", keys)
	}
	m := &Metrics{}
	m.Set(got)
	if n := testutil.CollectAndCount(m, "sonde_nvml_temperature_celsius"); n != 7 {
		t.Errorf("%d series of 7 GPUs", n)
	}
}

func TestAnOldDriverLacksACallAndLives(t *testing.T) {
	s := machine(nil)
	s.LookupSymbolFunc = func(string) error { return os.ErrNotExist }
	for i := range 8 {
		s.Devices[i].(*dgxa100.Device).GetCurrentClocksEventReasonsFunc = nil // it would panic
	}
	if got := open(t, s).Read(time.Now()); got[0].Throttled != nil {
		t.Errorf("throttle reasons of a driver without them: %d", *got[0].Throttled)
	}
}

func TestAnXIDIsCountedOnItsOwnGPU(t *testing.T) {
	events := make(chan nvml.EventData)
	lib := machine(events)
	s := open(t, lib)
	send := func(gpu int, kind, xid uint64) {
		events <- nvml.EventData{Device: lib.Devices[gpu], EventType: kind, EventData: xid}
	}
	send(5, nvml.EventTypeXidCriticalError, 79)
	send(5, nvml.EventTypeXidCriticalError, 48)
	send(2, nvml.EventTypePState, 1)
	send(2, nvml.EventTypePState, 1) // the one before has been noted when this one is taken
	for i, x := range s.Read(time.Now()) {
		want := uint64(0)
		if i == 5 {
			want = 2
		}
		if *x.XIDs != want || (x.LastXID != nil) != (i == 5) || i == 5 && *x.LastXID != 48 {
			t.Errorf("GPU %d: %d XIDs, last %v", i, *x.XIDs, x.LastXID)
		}
	}
}

func TestAMachineThatCannotBeReadSaysWhy(t *testing.T) {
	none := machine(nil)
	none.InitFunc = func() nvml.Return { return nvml.ERROR_LIBRARY_NOT_FOUND }
	empty := machine(nil)
	empty.DeviceGetCountFunc = func() (int, nvml.Return) { return 0, nvml.SUCCESS }
	for want, lib := range map[string]nvml.Interface{"driver installed": none, "sees none": empty} {
		if _, err := Open(lib, "h"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}

func TestTheFileKeepsItsBoundAndWholeLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpu.jsonl")
	s := open(t, machine(nil))
	for range 3 { // programs, one after the other
		l, err := OpenLines(path, 20000)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if err := l.Write(s.Read(time.Now())); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	lines := 0
	for _, p := range []string{path, path + ".1"} {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 20000 {
			t.Errorf("%s has %d bytes", p, len(data))
		}
		for line := range strings.Lines(string(data)) {
			var x Sample
			if err := json.Unmarshal([]byte(line), &x); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			lines++
		}
	}
	if lines < 16 {
		t.Errorf("%d lines are left", lines)
	}
}

func TestMetricsAreWhatPrometheusTakes(t *testing.T) {
	m := &Metrics{}
	m.Set(open(t, machine(nil)).Read(time.Now()))
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	n, err := testutil.GatherAndCount(registry)
	if err != nil || n != 8*len(metrics) {
		t.Errorf("%d series of 8 GPUs with %d each; %v", n, len(metrics), err)
	}
}
