// Package gauges reads what the driver says of each GPU, so that what a capture cost, or why it lost rows, can be laid
// beside the state of the machine at that moment.
package gauges

import (
	"errors"
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Sample is the state of one GPU at one moment. What the GPU or its driver does not tell is nil, never 0.
type Sample struct {
	WallNS      int64   `json:"wall_ns"` // ns since 1970, on the clock that capture_ns of rows is of
	Host        string  `json:"host"`
	GPU         int     `json:"gpu"` // index of this boot
	UUID        string  `json:"uuid"`
	Name        string  `json:"name"`
	Driver      string  `json:"driver"`
	Busy        *uint32 `json:"busy_percent,omitempty"`        // of the driver's last period, in which a kernel ran
	MemoryBusy  *uint32 `json:"memory_busy_percent,omitempty"` // in which device memory was read or written
	MemoryUsed  *uint64 `json:"memory_used_bytes,omitempty"`
	MemoryTotal *uint64 `json:"memory_total_bytes,omitempty"`
	PCIeOut     *uint64 `json:"pcie_sent_bytes_per_s,omitempty"` // from the GPU to the host, over the last 20 ms
	PCIeIn      *uint64 `json:"pcie_received_bytes_per_s,omitempty"`
	PCIeReplays *uint64 `json:"pcie_replays_total,omitempty"` // since the driver was loaded
	SMClock     *uint32 `json:"sm_clock_mhz,omitempty"`
	MemoryClock *uint32 `json:"memory_clock_mhz,omitempty"`
	Power       *uint32 `json:"power_mw,omitempty"`
	Temperature *uint32 `json:"temperature_c,omitempty"`
	Throttled   *uint64 `json:"throttle_reasons,omitempty"` // bits as nvml.h names them; 0: the clocks are free
	ECCFixed    *uint64 `json:"ecc_corrected_total,omitempty"`
	ECCBroken   *uint64 `json:"ecc_uncorrected_total,omitempty"` // both since the driver was loaded
	XIDs        *uint64 `json:"xid_errors_total,omitempty"`      // since this program runs
	LastXID     *uint64 `json:"last_xid,omitempty"`
}

// Source is a machine with GPUs. It is used by one goroutine; its XIDs are counted on another.
type Source struct {
	lib    nvml.Interface
	host   string
	driver string
	gpus   []gpu
	xids   *xids
	// The driver has the call, which those before 535 have not: there the process would end.
	throttle bool
}

type gpu struct {
	device     nvml.Device
	uuid, name string
}

// Open loads the driver's library and finds the GPUs. Close must be called. An error says what is missing.
func Open(lib nvml.Interface, host string) (*Source, error) {
	if r := lib.Init(); r != nvml.SUCCESS {
		return nil, fmt.Errorf("load NVML: %s; is the NVIDIA driver installed, and libnvidia-ml.so.1 found?", text(r))
	}
	s := &Source{lib: lib, host: host}
	if err := s.find(); err != nil {
		lib.Shutdown()
		return nil, err
	}
	s.throttle = lib.Extensions().LookupSymbol("nvmlDeviceGetCurrentClocksEventReasons") == nil
	s.xids = watch(lib, s.gpus)
	return s, nil
}

func (s *Source) find() error {
	var r nvml.Return
	if s.driver, r = s.lib.SystemGetDriverVersion(); r != nvml.SUCCESS {
		return fmt.Errorf("ask for the driver's version: %s", text(r))
	}
	n, r := s.lib.DeviceGetCount()
	if r != nvml.SUCCESS {
		return fmt.Errorf("count GPUs: %s", text(r))
	}
	if n == 0 {
		return errors.New("find GPUs: the driver sees none")
	}
	for i := range n {
		d, r := s.lib.DeviceGetHandleByIndex(i)
		if r != nvml.SUCCESS {
			return fmt.Errorf("open GPU %d: %s; another user may own it", i, text(r))
		}
		uuid, r := d.GetUUID()
		if r != nvml.SUCCESS {
			return fmt.Errorf("ask GPU %d for its UUID: %s", i, text(r))
		}
		name, _ := d.GetName() // without it the UUID still says which one
		s.gpus = append(s.gpus, gpu{d, uuid, name})
	}
	return nil
}

// Close lets go of the driver.
func (s *Source) Close() {
	s.xids.close()
	s.lib.Shutdown()
}

// Read takes a sample of each GPU, in the order of their indices.
func (s *Source) Read(now time.Time) []Sample {
	out := make([]Sample, 0, len(s.gpus))
	for i, g := range s.gpus {
		d := g.device
		x := Sample{WallNS: now.UnixNano(), Host: s.host, GPU: i, UUID: g.uuid, Name: g.name, Driver: s.driver}
		if u, r := d.GetUtilizationRates(); r == nvml.SUCCESS {
			x.Busy, x.MemoryBusy = &u.Gpu, &u.Memory
		}
		if m, r := d.GetMemoryInfo(); r == nvml.SUCCESS {
			x.MemoryUsed, x.MemoryTotal = &m.Used, &m.Total
		}
		x.PCIeOut = kibibytes(d.GetPcieThroughput(nvml.PCIE_UTIL_TX_BYTES))
		x.PCIeIn = kibibytes(d.GetPcieThroughput(nvml.PCIE_UTIL_RX_BYTES))
		if n, r := d.GetPcieReplayCounter(); r == nvml.SUCCESS && n >= 0 {
			x.PCIeReplays = ptr(uint64(n))
		}
		x.SMClock = known(d.GetClockInfo(nvml.CLOCK_SM))
		x.MemoryClock = known(d.GetClockInfo(nvml.CLOCK_MEM))
		x.Power = known(d.GetPowerUsage())
		x.Temperature = known(d.GetTemperature(nvml.TEMPERATURE_GPU))
		if s.throttle {
			x.Throttled = known(d.GetCurrentClocksEventReasons())
		}
		x.ECCFixed = known(d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.VOLATILE_ECC))
		x.ECCBroken = known(d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC))
		x.XIDs, x.LastXID = s.xids.of(g.uuid)
		out = append(out, x)
	}
	return out
}

// known is the value of a call that succeeded, else nil.
func known[T any](v T, r nvml.Return) *T {
	if r != nvml.SUCCESS {
		return nil
	}
	return &v
}

// kibibytes is the same in bytes of what the driver tells in KiB.
func kibibytes(v uint32, r nvml.Return) *uint64 {
	if r != nvml.SUCCESS {
		return nil
	}
	return ptr(uint64(v) << 10)
}

func ptr[T any](v T) *T { return &v }

// text is the driver's word for a return code. A library that was not loaded has none.
func text(r nvml.Return) string {
	if r == nvml.ERROR_LIBRARY_NOT_FOUND {
		return "the library was not found"
	}
	return nvml.ErrorString(r)
}
