package ring2

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// The socket is of type SOCK_SEQPACKET ("unixpacket"): one send is one message,
// descriptors stick to the message that they came with, and no peer can make
// the other wait for the rest of a message. Each message is a ring2_message
// header and a body. Bodies are strict: a later minor version adds message
// types, which older peers skip, and never changes a body.
const socketNetwork = "unixpacket"

// Bounds of a snapshot. The agent refuses an engine that passes them, and the
// writer refuses to keep more alive than fits.
const (
	maxSnapshotItems = 1 << 18
	maxSnapshotBytes = 64 << 20 // of payloads
)

// helloDescriptors travel with HELLO, in this order: ctl, data, wake.
const helloDescriptors = 3

var messageNames = [...]string{"message(0)", "HELLO", "WELCOME", "REFUSE", "SNAPSHOT_ITEM", "SNAPSHOT_END", "ABORT",
	"ABORT_ACK"}

// message is one received message. body aliases the receive buffer.
type message struct {
	major, minor uint16
	typ          uint16
	body         []byte
	fds          []int // owned by whoever got the message
}

func (m *message) name() string { return name(messageNames[:], int(m.typ), "message") }

// known says whether this version defines the type; unknown ones are skipped.
func (m *message) known() bool { return m.typ > 0 && int(m.typ) < len(messageNames) }

// closeFDs closes the descriptors that came with the message.
func (m *message) closeFDs() {
	for _, fd := range m.fds {
		// An error of close leaves nothing to do: the descriptor is gone.
		_ = unix.Close(fd)
	}
	m.fds = nil
}

// snapshotItem is one record that still lives, as it stands in the ring.
type snapshotItem struct {
	seq     uint64
	kind    Kind
	payload []byte // aliases the receive buffer
}

// snapshotEnd closes a snapshot: the reader starts at releaseSeq.
type snapshotEnd struct {
	releaseSeq uint64
	count      uint32 // of items
}

// abortAck answers the abort of the same id.
type abortAck struct {
	id          uint64
	outcome     AbortOutcome
	finalLength uint32 // tokens
}

// newMessage starts a message; sealMessage fills in its length.
func newMessage(typ uint16, fds int) []byte {
	b := order.AppendUint32(make([]byte, 0, 128), abiMessageMagic)
	b = order.AppendUint16(b, abiABIMajor)
	b = order.AppendUint16(b, abiABIMinor)
	b = order.AppendUint16(b, typ)
	b = order.AppendUint16(b, uint16(fds))
	return order.AppendUint32(b, 0)
}

// sealMessage writes the length of the body. Every body but a snapshot item's is
// a few bounded texts, so only that one can be too long.
func sealMessage(b []byte) []byte {
	if len(b) > abiMessageMaxBytes {
		panic(fmt.Sprintf("BUG: message of %d bytes; at most %d", len(b), abiMessageMaxBytes))
	}
	order.PutUint32(b[abiMessageBodyBytesOff:], uint32(len(b)-abiMessageBytes))
	return b
}

// helloMessage opens a connection. library names the writer's code and version,
// for people.
func helloMessage(library string) []byte {
	return sealMessage(appendText(newMessage(abiMessageHello, helloDescriptors), library))
}

func parseHello(body []byte) (library string, err error) { return parseText(body, abiMessageHello) }

// welcomeMessage accepts a ring. agent names the agent, for people.
func welcomeMessage(agent string) []byte {
	return sealMessage(appendText(newMessage(abiMessageWelcome, 0), agent))
}

func parseWelcome(body []byte) (agent string, err error) { return parseText(body, abiMessageWelcome) }

// refuseMessage says in one sentence why the agent does not take the ring. Its
// form is the same in every version, so that each peer can show it.
func refuseMessage(sentence string) []byte {
	return sealMessage(appendText(newMessage(abiMessageRefuse, 0), sentence))
}

func parseRefuse(body []byte) (sentence string, err error) { return parseText(body, abiMessageRefuse) }

func parseText(body []byte, typ uint16) (string, error) {
	p := payload{b: body}
	s := p.text()
	return s, p.endMessage(typ)
}

// snapshotItemMessage carries one living record. It fails for a payload that no
// record can have.
func snapshotItemMessage(s snapshotItem) ([]byte, error) {
	if len(s.payload) > MaxControlBytes {
		return nil, fmt.Errorf("send snapshot: %s record of %d bytes; at most %d", s.kind, len(s.payload), MaxControlBytes)
	}
	b := order.AppendUint64(newMessage(abiMessageSnapshotItem, 0), s.seq)
	b = order.AppendUint16(b, uint16(s.kind))
	b = append(b, 0, 0, 0, 0, 0, 0)
	return sealMessage(append(b, s.payload...)), nil
}

func parseSnapshotItem(body []byte) (snapshotItem, error) {
	p := payload{b: body}
	s := snapshotItem{seq: p.u64(), kind: Kind(p.u16())}
	p.zero(6)
	s.payload = p.b
	switch s.kind {
	case KindModel, KindLayout, KindRequestOpen:
	default:
		p.fail("%s records are not part of a snapshot", s.kind)
	}
	if len(s.payload) > MaxControlBytes {
		p.fail("%s record of %d bytes; at most %d", s.kind, len(s.payload), MaxControlBytes)
	}
	p.b = nil
	return s, p.endMessage(abiMessageSnapshotItem)
}

func snapshotEndMessage(s snapshotEnd) []byte {
	b := order.AppendUint64(newMessage(abiMessageSnapshotEnd, 0), s.releaseSeq)
	b = order.AppendUint32(b, s.count)
	return sealMessage(append(b, 0, 0, 0, 0))
}

func parseSnapshotEnd(body []byte) (snapshotEnd, error) {
	p := payload{b: body}
	s := snapshotEnd{releaseSeq: p.u64(), count: p.u32()}
	p.zero(4)
	return s, p.endMessage(abiMessageSnapshotEnd)
}

func abortMessage(a Abort) []byte {
	b := newMessage(abiMessageAbort, 0)
	for _, v := range [...]uint64{a.ID, a.Epoch, a.Number, a.ExpiresWallNS} {
		b = order.AppendUint64(b, v)
	}
	b = order.AppendUint32(b, a.Sample)
	b = order.AppendUint32(b, a.Position)
	return sealMessage(appendText(b, a.EngineID))
}

func parseAbort(body []byte) (Abort, error) {
	p := payload{b: body}
	a := Abort{ID: p.u64(), Epoch: p.u64(), Number: p.u64(), ExpiresWallNS: p.u64(), Sample: p.u32(),
		Position: p.u32(), EngineID: p.text()}
	return a, p.endMessage(abiMessageAbort)
}

func abortAckMessage(a abortAck) []byte {
	b := order.AppendUint64(newMessage(abiMessageAbortAck, 0), a.id)
	b = order.AppendUint32(b, a.finalLength)
	return sealMessage(append(b, byte(a.outcome), 0, 0, 0))
}

func parseAbortAck(body []byte) (abortAck, error) {
	p := payload{b: body}
	a := abortAck{id: p.u64(), finalLength: p.u32(), outcome: AbortOutcome(p.u8())}
	p.zero(3)
	if int(a.outcome) >= len(abortNames) {
		p.fail("outcome %d does not exist", a.outcome)
	}
	return a, p.endMessage(abiMessageAbortAck)
}

// endMessage reports the first failure, or bytes that nobody read.
func (p *payload) endMessage(typ uint16) error {
	if p.err == nil && len(p.b) > 0 {
		p.fail("%d bytes too many", len(p.b))
	}
	if p.err != nil {
		return fmt.Errorf("parse %s message: %w", messageNames[typ], p.err)
	}
	return nil
}

// parseMessage checks the header of one whole message, of which fds descriptors
// came along. The header and the REFUSE body are the same in every version: of
// another major version everything but a REFUSE is an ErrVersion, and then the
// message is filled in as far as it is understood.
func parseMessage(b []byte, fds int) (message, error) {
	p := payload{b: b}
	magic := p.u32()
	m := message{major: p.u16(), minor: p.u16(), typ: p.u16()}
	announced, bodyBytes := int(p.u16()), p.u32()
	m.body = p.b
	switch {
	case p.err != nil:
		return message{}, fmt.Errorf("parse message header: %w", p.err)
	case magic != abiMessageMagic:
		return message{}, fmt.Errorf("parse message header: magic is %#x; want %#x: the peer does not speak Ring²", magic,
			uint32(abiMessageMagic))
	case uint64(bodyBytes) != uint64(len(m.body)):
		return message{}, fmt.Errorf("parse %s message: body of %d bytes; the header says %d", m.name(), len(m.body),
			bodyBytes)
	case m.major != abiABIMajor && m.typ != abiMessageRefuse:
		return m, versionError(m.major, m.minor)
	}
	want := 0
	if m.typ == abiMessageHello {
		want = helloDescriptors
	}
	if fds != want || announced != want {
		return message{}, fmt.Errorf("parse %s message: %d descriptors came and the header says %d; want %d", m.name(), fds,
			announced, want)
	}
	return m, nil
}

// sendMessage sends one message with its descriptors, which stay the caller's.
// The caller sets the deadline.
func sendMessage(c *net.UnixConn, b []byte, fds ...int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(b, rights, nil); err != nil {
		return fmt.Errorf("send message to peer: %w", err)
	}
	return nil
}

// receiveMessage receives one message of a known type into buf, which has
// abiMessageMaxBytes. Descriptors that a message must not have are closed; those
// that it must have are the caller's. io.EOF says that the peer is gone. After
// any other error the connection is of no use, except that a REFUSE may be sent.
func receiveMessage(c *net.UnixConn, buf []byte) (message, error) {
	for {
		m, err := receiveAny(c, buf)
		if err != nil || m.known() {
			return m, err
		}
	}
}

func receiveAny(c *net.UnixConn, buf []byte) (message, error) {
	// Room for one descriptor more than a HELLO has shows a message with too
	// many; the kernel drops what finds no room.
	var rights [64]byte
	oob := rights[:unix.CmsgSpace(4*(helloDescriptors+1))]
	n, rightsLen, flags, _, err := c.ReadMsgUnix(buf, oob)
	if errors.Is(err, unix.ECONNRESET) {
		// A peer that closes with messages of ours unread resets the socket, and the
		// kernel tells that first and once; what the peer said, like why it refuses, is
		// still there to be read.
		n, rightsLen, flags, _, err = c.ReadMsgUnix(buf, oob)
	}
	if err != nil {
		return message{}, err
	}
	fds, err := parseRights(rights[:rightsLen])
	m := message{fds: fds}
	switch {
	case err != nil:
	case flags&unix.MSG_TRUNC != 0:
		err = fmt.Errorf("receive message: it has more than %d bytes", len(buf))
	case flags&unix.MSG_CTRUNC != 0:
		err = errors.New("receive message: too many descriptors came with it")
	default:
		m, err = parseMessage(buf[:n], len(fds))
		m.fds = fds
	}
	if err != nil {
		m.closeFDs()
	}
	return m, err
}

// parseRights lists the descriptors of control messages. It lists also those in
// front of an error, so that the caller can close them.
func parseRights(b []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return nil, fmt.Errorf("receive message: parse ancillary data: %w", err)
	}
	var fds []int
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, fmt.Errorf("receive message: ancillary data holds more than descriptors: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}
