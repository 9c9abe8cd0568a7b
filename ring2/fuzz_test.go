package ring2

import (
	"bytes"
	"errors"
	"hash/crc32"
	"reflect"
	"sync/atomic"
	"testing"
)

// Whatever bytes a peer shares or sends, or a dead one left: no panic, nothing out of range, no more
// memory than the bytes justify. What parses is written the same again: there is
// one form of everything.

func FuzzConfig(f *testing.F) {
	r, ctl := loadGoldenRing(f)
	f.Add(bytes.Clone(ctl[:abiConfigBytes]), uint32(len(ctl)), uint64(len(r.data)), true)
	f.Add(make([]byte, abiConfigBytes), uint32(abiDescOff), uint64(0), false)
	f.Fuzz(func(t *testing.T, zone []byte, ctlLen uint32, dataLen uint64, seal bool) {
		shared := heapMemory(int(ctlLen % (abiDescOff + 64*abiDescBytes)))
		copy(shared, zone[:min(len(zone), abiConfigBytes)])
		if seal && len(shared) >= abiConfigBytes {
			order.PutUint32(shared[abiConfigCRC32COff:],
				crc32.Checksum(shared[abiConfigABIMajorOff:abiConfigCRC32COff], castagnoli))
		}
		c, err := parseConfig(shared, dataLen)
		if err != nil {
			return
		}
		if c.DataBytes != dataLen || ctlBytes(c.DescCount) > uint64(len(shared)) {
			t.Fatalf("accepted %d descriptors and %d bytes for %d and %d", c.DescCount, c.DataBytes, len(shared), dataLen)
		}
		if dataLen <= 1<<20 {
			if _, err := ringOn(shared, heapMemory(abiZoneBytes), heapMemory(int(dataLen)), c.DescCount); err != nil {
				t.Fatalf("an accepted config lays no ring: %v", err)
			}
		}
	})
}

// FuzzRing reads a ring of which every byte is the peer's. seal makes the
// checksums right, so that what lies behind them is reached.
func FuzzRing(f *testing.F) {
	r, ctl := loadGoldenRing(f)
	descs := bytes.Clone(ctl[abiDescOff : abiDescOff+8*abiDescBytes])
	for _, seal := range []bool{false, true} {
		f.Add(descs, bytes.Clone(r.data[:2048]), uint64(0), uint64(8), []byte{1, 1, 4, 3, 1, 24, 2, 1}, seal)
	}
	f.Fuzz(func(t *testing.T, descs, data []byte, start, claim uint64, script []byte, seal bool) {
		r, ctl := heapRing(t, 8, 2048)
		copy(ctl[abiDescOff:], descs)
		copy(r.data, data)
		atomic.StoreUint64(&r.producer.ClaimSeq, claim)
		if seal {
			sealDescriptors(r)
		}
		core, peek := newReaderCore(r, start), Peek{ring: r}
		var lost []uint64
		for _, op := range script[:min(len(script), 256)] {
			switch op % 5 {
			case 0:
				core.setRelease(start + uint64(op/5))
			case 1:
				var rec Record
				ok, err := core.poll(&rec)
				if err != nil {
					var corrupt *corruptError
					if !errors.As(err, &corrupt) || ok {
						t.Fatalf("poll gives %v, %v", ok, err)
					}
					return
				}
				checkFuzzedRecord(t, r, ok, &rec)
			case 2:
				lost = core.skipLost(lost)
			case 3:
				core.setRelease(core.next)
			case 4:
				if g, sight := peek.Look(start + uint64(op/5)); sight == SightWhole {
					if b, _ := peek.Payload(&g, nil); len(b) > g.Bytes {
						t.Fatalf("a glance at %d bytes shows %d", g.Bytes, len(b))
					}
				}
			}
			if core.next-core.release > 8 || core.release-start > core.next-start {
				t.Fatalf("started at %d, read up to %d, released %d", start, core.next, core.release)
			}
		}
		if len(lost) > 8*256 {
			t.Fatalf("%d records are lost", len(lost))
		}
	})
}

func sealDescriptors(r ring) {
	for i := range r.descs {
		d := &r.descs[i]
		if off := d.DataPos & r.dataMask; off+uint64(d.DataLen) <= uint64(len(r.data)) {
			d.PayloadCRC32C = crc32.Checksum(r.span(d.DataPos, int(d.DataLen)), castagnoli)
		}
		d.CRC32C = d.checksum()
	}
}

func checkFuzzedRecord(t *testing.T, r ring, ok bool, rec *Record) {
	if !ok {
		return
	}
	if len(rec.Payload) > len(r.data) || rec.Aborted() && rec.Payload != nil {
		t.Fatalf("record %d has %d bytes, flags %#x", rec.Seq, len(rec.Payload), rec.Flags)
	}
	sum := byte(0)
	for _, b := range rec.Payload { // a span outside the mapping would fault
		sum ^= b
	}
	_ = sum
	parseAnything(rec.Kind, rec.Payload)
}

// reencodes parses a control payload and fails when its meaning is not written
// with the same bytes.
func reencodes[T any](t *testing.T, b []byte, parse func([]byte) (T, error), appendTo func([]byte, T) []byte) {
	v, err := parse(b)
	if err != nil {
		return
	}
	if again := appendTo(nil, v); !bytes.Equal(again, b) {
		t.Fatalf("%+v was read from\n%x and is written as\n%x", v, b, again)
	}
}

func FuzzControlRecords(f *testing.F) {
	for _, v := range loadVectors(f) {
		f.Add(uint16(v.Code), v.bytes(f))
	}
	f.Fuzz(func(t *testing.T, kind uint16, b []byte) {
		switch Kind(kind) {
		case KindModel:
			reencodes(t, b, ParseModel, AppendModel)
		case KindLayout:
			reencodes(t, b, ParseLayout, AppendLayout)
		case KindRequestOpen:
			reencodes(t, b, ParseRequestOpen, AppendRequestOpen)
		case KindStep:
			reencodes(t, b, ParseStep, AppendStep)
		case KindAmend:
			reencodes(t, b, ParseAmend, AppendAmend)
		case KindMissing:
			reencodes(t, b, ParseMissing, AppendMissing)
		case KindRequestEnd:
			reencodes(t, b, ParseRequestEnd, AppendRequestEnd)
		case KindObituary:
			reencodes(t, b, ParseObituary, AppendObituary)
		}
		if n := parseAnything(Kind(kind), b); n > 1<<16 && n > len(b) {
			t.Fatalf("%d items came out of %d bytes", n, len(b))
		}
	})
}

func FuzzSplitCapture(f *testing.F) {
	var layout, step, capture []byte
	for _, v := range loadVectors(f) {
		switch v.Code {
		case KindLayout:
			layout = v.bytes(f)
		case KindStep:
			step = v.bytes(f)
		case KindCapture:
			capture = v.bytes(f)
		}
	}
	f.Add(layout, step, capture, int8(0))
	f.Add(layout, step, capture, int8(-1))
	f.Fuzz(func(t *testing.T, layout, step, capture []byte, index int8) {
		l, err := ParseLayout(layout)
		if err != nil {
			return
		}
		s, err := ParseStep(step)
		if err != nil {
			return
		}
		entries, err := SplitCapture(&l, &s, int(index), capture)
		if err != nil {
			return
		}
		total := 0
		for i := range entries {
			e := &entries[i]
			if e.Rows > len(capture) {
				t.Fatalf("entry %d has %d rows in %d bytes", i, e.Rows, len(capture))
			}
			for row := range e.Rows {
				total += len(e.Row(row))
			}
		}
		if total > len(capture) {
			t.Fatalf("rows have %d bytes, the capture %d", total, len(capture))
		}
	})
}

// FuzzMessages reads what came over the socket.
func FuzzMessages(f *testing.F) {
	item, err := snapshotItemMessage(snapshotItem{seq: 3, kind: KindModel, payload: []byte{1, 2}})
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{helloMessage("c 1"), welcomeMessage("agent"), refuseMessage("no"), item,
		snapshotEndMessage(snapshotEnd{5, 1}), abortMessage(sampleAbort), abortAckMessage(abortAck{7, AbortStopped, 42})} {
		f.Add(b, uint8(0))
		f.Add(b, uint8(helloDescriptors))
	}
	f.Fuzz(func(t *testing.T, b []byte, fds uint8) {
		m, err := parseMessage(b, int(fds))
		if err != nil || !m.known() {
			return
		}
		again, err := reencodeMessage(&m)
		if err != nil {
			return
		}
		if !bytes.Equal(again[abiMessageTypeOff:abiMessageFdsOff], b[abiMessageTypeOff:abiMessageFdsOff]) ||
			!bytes.Equal(again[abiMessageBodyBytesOff:], b[abiMessageBodyBytesOff:]) {
			t.Fatalf("a %s message of\n%x is written as\n%x", m.name(), b, again)
		}
	})
}

func reencodeMessage(m *message) ([]byte, error) {
	texts := map[uint16]struct {
		parse func([]byte) (string, error)
		write func(string) []byte
	}{abiMessageHello: {parseHello, helloMessage}, abiMessageWelcome: {parseWelcome, welcomeMessage},
		abiMessageRefuse: {parseRefuse, refuseMessage}}
	if c, ok := texts[m.typ]; ok {
		s, err := c.parse(m.body)
		return c.write(s), err
	}
	switch m.typ {
	case abiMessageSnapshotItem:
		s, err := parseSnapshotItem(m.body)
		if err != nil {
			return nil, err
		}
		return snapshotItemMessage(s)
	case abiMessageSnapshotEnd:
		s, err := parseSnapshotEnd(m.body)
		return snapshotEndMessage(s), err
	case abiMessageAbort:
		a, err := parseAbort(m.body)
		return abortMessage(a), err
	}
	a, err := parseAbortAck(m.body)
	return abortAckMessage(a), err
}

// FuzzJournal reads a segment of a dead writer's journal, which may be torn
// anywhere or not be one.
func FuzzJournal(f *testing.F) {
	var segment []byte
	for i, v := range loadVectors(f) {
		segment = appendJournalRecord(segment, uint64(i), uint64(i), v.Code, ObituaryNeverPut, v.bytes(f))
	}
	f.Add(segment)
	f.Add(segment[:len(segment)-3])
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		var again []byte
		for {
			rec, err := readJournalRecord(r)
			if err != nil {
				break
			}
			again = appendJournalRecord(again, rec.ordinal, rec.seq, rec.kind, rec.flags, rec.payload)
		}
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("the records of\n%x are written as\n%x", b, again)
		}
	})
}

// A fuzz target without seeds would only fuzz the first check.
func TestSeedsReachWhatTheyAreFor(t *testing.T) {
	r, ctl := loadGoldenRing(t)
	records, err := readRing(r, ctl)
	if err != nil || len(records) == 0 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	sealDescriptors(r)
	again, err := readRing(r, ctl)
	if err != nil || !reflect.DeepEqual(records, again) {
		t.Fatalf("sealing a good ring changes it: %v", err)
	}
}
