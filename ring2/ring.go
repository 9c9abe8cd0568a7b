package ring2

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"sync/atomic"
	"time"
	"unsafe"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ring is typed access to the two memories of a ring. They may be mappings or,
// in tests, plain heap memory, which the race detector can see.
type ring struct {
	config   *abiConfig
	producer *abiProducer
	consumer *abiConsumer
	descs    []abiDesc
	data     []byte
	mask     uint64 // of descs
	dataMask uint64
}

// ctlBytes is the size of the ctl memory for so many descriptors.
func ctlBytes(descCount uint64) uint64 { return abiDescOff + descCount*abiDescBytes }

// ringOn lays a ring over memory. The consumer zone is separate because the
// reader maps nothing else writable. Lengths are checked here once, so that no
// index can leave them later.
func ringOn(ctl, consumer, data []byte, descCount uint64) (ring, error) {
	if bits.OnesCount64(descCount) != 1 || bits.OnesCount(uint(len(data))) != 1 {
		return ring{}, fmt.Errorf("ring of %d descriptors and %d bytes: both must be powers of two", descCount, len(data))
	}
	if descCount > maxDescCount || uint64(len(ctl)) < ctlBytes(descCount) || len(consumer) < abiConsumerBytes {
		return ring{}, fmt.Errorf("ring of %d descriptors in %d bytes of ctl and %d of consumer zone: too small", descCount,
			len(ctl), len(consumer))
	}
	return ring{
		config:   (*abiConfig)(unsafe.Pointer(&ctl[abiConfigOff])),
		producer: (*abiProducer)(unsafe.Pointer(&ctl[abiProducerOff])),
		consumer: (*abiConsumer)(unsafe.Pointer(&consumer[0])),
		descs:    unsafe.Slice((*abiDesc)(unsafe.Pointer(&ctl[abiDescOff])), descCount),
		data:     data,
		mask:     descCount - 1,
		dataMask: uint64(len(data)) - 1,
	}, nil
}

func (r *ring) desc(seq uint64) *abiDesc { return &r.descs[seq&r.mask] }

// span is the payload memory of n bytes at a position; the caller has checked
// that they do not cross the end.
func (r *ring) span(pos uint64, n int) []byte {
	off := pos & r.dataMask
	return r.data[off : off+uint64(n) : off+uint64(n)]
}

// bytesOf views a structure as bytes, for checksums and dumps.
func bytesOf[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }

func (d *abiDesc) checksum() uint32 {
	return crc32.Checksum(bytesOf(d)[abiDescSeqOff:abiDescCRC32COff], castagnoli)
}

func (c *abiConfig) checksum() uint32 {
	return crc32.Checksum(bytesOf(c)[abiConfigABIMajorOff:abiConfigCRC32COff], castagnoli)
}

// Bounds of a ring.
const (
	minDescCount = 8
	maxDescCount = 1 << 20
	minDataBytes = 256 << 10
	maxDataBytes = 1 << 36
	maxRanks     = 1 << 16
)

// ErrVersion is wrapped by errors about a peer that speaks another ABI.
var ErrVersion = errors.New("ring ABI differs")

// Config is what the engine said about itself and its ring.
type Config struct {
	ABIMajor, ABIMinor uint16
	DescCount          uint64
	DataBytes          uint64
	Epoch              uint64
	Features           uint64
	ReserveDescs       uint64
	ReserveBytes       uint64
	ProducerPID        uint32
	Rank, RankCount    uint32
	Mode               Mode
	StepStallBudget    time.Duration
	WallMinusMonoNS    uint64 // add to a CaptureNS for wall-clock nanoseconds
	EngineInstance     string
}

// parseConfig checks the config zone of an untrusted peer against the memory
// that came with it.
func parseConfig(ctl []byte, dataLen uint64) (Config, error) {
	if len(ctl) < abiDescOff {
		return Config{}, fmt.Errorf("parse ring config: ctl has %d bytes; at least %d", len(ctl), abiDescOff)
	}
	shared := (*abiConfig)(unsafe.Pointer(&ctl[abiConfigOff]))
	// Pairs with the release store of magic at the end of the writer's
	// initConfig; the copy is what is checked, never the shared bytes.
	if magic := atomic.LoadUint32(&shared.Magic); magic != abiMagic {
		return Config{}, fmt.Errorf("parse ring config: magic is %#x; want %#x", magic, uint32(abiMagic))
	}
	c := new(abiConfig)
	copy(bytesOf(c), ctl[abiConfigOff:abiConfigBytes])
	switch {
	case c.ABIMajor != abiABIMajor:
		return Config{}, versionError(c.ABIMajor, c.ABIMinor)
	case c.CRC32C != c.checksum():
		return Config{}, fmt.Errorf("parse ring config: checksum is %#x; the bytes have %#x", c.CRC32C, c.checksum())
	case c.HeaderBytes != abiConfigBytes || c.DescBytes != abiDescBytes || c.DescOff != abiDescOff:
		return Config{}, fmt.Errorf("parse ring config: header %d, descriptor %d, offset %d; want %d, %d, %d", c.HeaderBytes,
			c.DescBytes, c.DescOff, abiConfigBytes, abiDescBytes, abiDescOff)
	case bits.OnesCount64(c.DescCount) != 1 || c.DescCount > maxDescCount || ctlBytes(c.DescCount) > uint64(len(ctl)):
		return Config{}, fmt.Errorf("parse ring config: %d descriptors in %d bytes of ctl", c.DescCount, len(ctl))
	case bits.OnesCount64(c.DataBytes) != 1 || c.DataBytes > maxDataBytes || c.DataBytes != dataLen:
		return Config{}, fmt.Errorf("parse ring config: %d bytes of data; the memory has %d", c.DataBytes, dataLen)
	case c.ReserveDescs >= c.DescCount || c.ReserveBytes >= c.DataBytes:
		return Config{}, fmt.Errorf("parse ring config: reserve of %d descriptors and %d bytes leaves nothing",
			c.ReserveDescs, c.ReserveBytes)
	case c.Rank >= c.RankCount || c.RankCount > maxRanks || c.Mode > uint32(Complete) || c.Epoch == 0:
		return Config{}, fmt.Errorf("parse ring config: rank %d of %d, mode %d, epoch %d", c.Rank, c.RankCount, c.Mode,
			c.Epoch)
	}
	instance, err := unpad(c.EngineInstance[:])
	if err != nil {
		return Config{}, err
	}
	return Config{ABIMajor: c.ABIMajor, ABIMinor: c.ABIMinor, DescCount: c.DescCount, DataBytes: c.DataBytes,
		Epoch: c.Epoch, Features: c.Features, ReserveDescs: c.ReserveDescs, ReserveBytes: c.ReserveBytes,
		ProducerPID: c.ProducerPID, Rank: c.Rank, RankCount: c.RankCount, Mode: Mode(c.Mode),
		StepStallBudget: time.Duration(c.StepStallBudgetNS), WallMinusMonoNS: c.WallMinusMonoNS,
		EngineInstance: instance}, nil
}

func versionError(major, minor uint16) error {
	return fmt.Errorf("%w: the engine speaks ring ABI %d.%d and this agent %d.%d; upgrade the older of the two",
		ErrVersion, major, minor, abiABIMajor, abiABIMinor)
}

// unpad reads NUL-padded text whose last byte must be NUL.
func unpad(b []byte) (string, error) {
	for i, v := range b {
		if v == 0 {
			return string(b[:i]), nil
		}
	}
	return "", fmt.Errorf("parse ring config: engine instance is not NUL-terminated")
}

// initConfig writes zone 0. magic comes last: a peer that sees it sees the rest.
func (r *ring) initConfig(c Config) {
	z := r.config
	z.ABIMajor, z.ABIMinor, z.HeaderBytes, z.DescBytes = c.ABIMajor, c.ABIMinor, abiConfigBytes, abiDescBytes
	z.DescCount, z.DescOff, z.DataBytes, z.Epoch, z.Features = c.DescCount, abiDescOff, c.DataBytes, c.Epoch, c.Features
	z.ReserveDescs, z.ReserveBytes, z.ProducerPID = c.ReserveDescs, c.ReserveBytes, c.ProducerPID
	z.Rank, z.RankCount, z.Mode = c.Rank, c.RankCount, uint32(c.Mode)
	z.StepStallBudgetNS, z.WallMinusMonoNS = uint64(c.StepStallBudget), c.WallMinusMonoNS
	copy(z.EngineInstance[:len(z.EngineInstance)-1], c.EngineInstance)
	z.CRC32C = z.checksum()
	atomic.StoreUint32(&z.Magic, abiMagic)
}
