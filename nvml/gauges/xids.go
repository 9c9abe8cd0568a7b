package gauges

import (
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

const (
	xidWaitMS = 500         // longest wait of the driver, and so of close
	xidPause  = time.Second // after an error of the driver
)

// xids counts the XID errors of each GPU: those that the driver tells while somebody waits for them.
type xids struct {
	set  nvml.EventSet // nil: the driver has no events
	stop chan struct{}
	done sync.WaitGroup

	mu    sync.Mutex
	count map[string]uint64 // by UUID; absent: that GPU tells none
	last  map[string]uint64
}

// watch registers all GPUs that have such events.
func watch(lib nvml.Interface, gpus []gpu) *xids {
	x := &xids{stop: make(chan struct{}), count: map[string]uint64{}, last: map[string]uint64{}}
	set, r := lib.EventSetCreate()
	if r != nvml.SUCCESS {
		return x
	}
	for _, g := range gpus {
		if g.device.RegisterEvents(nvml.EventTypeXidCriticalError, set) == nvml.SUCCESS {
			x.count[g.uuid] = 0
		}
	}
	if len(x.count) == 0 {
		set.Free()
		return x
	}
	x.set = set
	x.done.Go(x.wait)
	return x
}

func (x *xids) wait() {
	for {
		select {
		case <-x.stop:
			return
		default:
		}
		event, r := x.set.Wait(xidWaitMS)
		switch r {
		case nvml.SUCCESS:
			x.note(event)
		case nvml.ERROR_TIMEOUT:
		default:
			select {
			case <-x.stop:
			case <-time.After(xidPause):
			}
		}
	}
}

func (x *xids) note(event nvml.EventData) {
	if event.EventType != nvml.EventTypeXidCriticalError || event.Device == nil {
		return
	}
	uuid, r := event.Device.GetUUID()
	if r != nvml.SUCCESS {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.count[uuid]++
	x.last[uuid] = event.EventData
}

// of gives the count of a GPU and its last XID; nil where there is none.
func (x *xids) of(uuid string) (count, last *uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if n, ok := x.count[uuid]; ok {
		count = &n
	}
	if n, ok := x.last[uuid]; ok {
		last = &n
	}
	return count, last
}

func (x *xids) close() {
	if x.set == nil {
		return
	}
	close(x.stop)
	x.done.Wait()
	x.set.Free()
}
