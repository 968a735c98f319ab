package hvsock

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// The endpoint protocol, version 1 (docs/endpoint.md): its messages as values and bytes. No I/O.

const (
	wireVersion = 1
	maxMessage  = 4096
	headerSize  = 4
	// Every message with an address and a transport starts with as many bytes.
	maxTimeout = 300000
)

// The kinds of messages to the broker.
const (
	kindLookup       = 0x01
	kindSetOption    = 0x02
	kindConnect      = 0x03
	kindListen       = 0x04
	kindRegister     = 0x05
	kindAccepted     = 0x06
	kindShutdown     = 0x07
	kindConnectNamed = 0x08
	kindListenNamed  = 0x09
	kindDescribe     = 0x0a
)

// The kinds of messages from the broker.
const (
	kindFound       = 0x81
	kindConnected   = 0x82
	kindListening   = 0x83
	kindRegistered  = 0x84
	kindIncoming    = 0x85
	kindRefused     = 0x86
	kindEnded       = 0x87
	kindReset       = 0x88
	kindExplained   = 0x89
	kindSuspended   = 0x8a
	kindBound       = 0x8b
	kindStreamReset = 0x8c
	kindCID         = 0x8d
	kindAttachable  = 0x8e
)

// The flags of requests.
const (
	flagDryRun  = 2
	flagExplain = 4
)

// The transports.
const (
	transportDescriptor = 1
	transportRing       = 2
	transportArena      = 4
	transportDirect     = 8
	transportAttached   = 16

	// What this package can use.
	ownTransports = transportDescriptor | transportDirect
)

// The options.
const (
	optionConnectedSuspend = 0x04
	optionConfirmEnd       = 0x101
)

// The kinds of names in LOOKUP.
const (
	lookupService   = 1
	lookupPartition = 2
)

// violation is in the detail of the refusal of a message that breaks the protocol, or that an older broker does
// not know.
const violation = "violated the endpoint protocol"

func header(kind byte, flags uint16) []byte {
	bytes := make([]byte, 0, 64)
	return binary.LittleEndian.AppendUint16(append(bytes, wireVersion, kind), flags)
}

func appendNumber(bytes []byte, number uint32) []byte {
	return binary.LittleEndian.AppendUint32(bytes, number)
}

// appendText appends as much of text as fits into a message, up to a boundary of characters.
func appendText(bytes []byte, text string) []byte {
	if free := maxMessage - len(bytes); len(text) > free {
		for free > 0 && !utf8.RuneStart(text[free]) {
			free--
		}
		text = text[:free]
	}
	return append(bytes, text...)
}

func encodeLookup(what uint32, name string) []byte {
	return appendText(appendNumber(header(kindLookup, 0), what), name)
}

func encodeSetOption(option, value uint32) []byte {
	return appendNumber(appendNumber(header(kindSetOption, 0), option), value)
}

// encodeRequest returns CONNECT, LISTEN, CONNECT_NAMED or LISTEN_NAMED; number is the timeout or the backlog.
func encodeRequest(kind byte, flags uint16, number, transports uint32, address Address) []byte {
	ids := address.ids()
	if address.Partition != "" {
		ids.VMID = guidZero
	}
	if address.Service != "" {
		ids.ServiceID = guidZero
	}
	bytes := appendNumber(appendNumber(header(kind, flags), number), transports)
	bytes = ids.appendTo(bytes)
	if kind == kindConnectNamed || kind == kindListenNamed {
		bytes = appendNumber(bytes, uint32(len(address.Partition)))
		bytes = appendText(append(bytes, address.Partition...), address.Service)
	}
	return bytes
}

func encodeRegister(service GUID, name, purpose string) []byte {
	id := service.ToWindowsArray()
	bytes := append(header(kindRegister, 0), id[:]...)
	bytes = appendNumber(bytes, uint32(len(name)))
	return appendText(append(bytes, name...), purpose)
}

func encodeAccepted(connection uint64) []byte {
	return binary.LittleEndian.AppendUint64(header(kindAccepted, 0), connection)
}

func encodeDescribe(action, detail string) []byte {
	bytes := appendNumber(header(kindDescribe, 0), uint32(len(action)))
	return appendText(append(bytes, action...), detail)
}

// brokerMessage is a message from the broker. The kind says which fields it has.
type brokerMessage struct {
	kind       byte
	guid       GUID
	transport  uint32
	connection uint64
	local      HvsockAddr
	peer       HvsockAddr
	backlog    uint32
	listener   uint64
	address    HvsockAddr
	pid        uint32
	uid        uint32
	gid        uint32
	suspended  bool
	slot       uint32
	seq        uint32
	cid        uint32
	code       uint32
	errno      uint32
	text       string
}

// layouts has, for each kind from the broker, the length of its fixed part and whether text follows.
var layouts = map[byte]struct {
	size    int
	hasText bool
}{
	kindFound:       {20, false},
	kindConnected:   {80, false},
	kindListening:   {16, false},
	kindRegistered:  {4, false},
	kindIncoming:    {92, true},
	kindRefused:     {12, true},
	kindEnded:       {4, false},
	kindReset:       {12, true},
	kindExplained:   {12, true},
	kindSuspended:   {8, false},
	kindBound:       {48, false},
	kindStreamReset: {20, true},
	kindCID:         {8, false},
	kindAttachable:  {4, false},
}

// decodeAnyVersion reads a message from the broker, or a refusal by a broker of another version of the protocol: header
// and reason are at the same offsets in every version.
func decodeAnyVersion(bytes []byte) (brokerMessage, error) {
	if len(bytes) >= layouts[kindRefused].size && bytes[0] != wireVersion && bytes[1] == kindRefused {
		bytes = append([]byte{wireVersion, kindRefused, 0, 0}, bytes[headerSize:]...)
	}
	return decode(bytes)
}

// decode reads a message from the broker. Its error says how the message violates the protocol.
func decode(bytes []byte) (brokerMessage, error) {
	if len(bytes) < headerSize {
		return brokerMessage{}, fmt.Errorf("a message of %d bytes", len(bytes))
	}
	if len(bytes) > maxMessage {
		return brokerMessage{}, fmt.Errorf("a message of more than %d bytes", maxMessage)
	}
	version, kind, flags := bytes[0], bytes[1], binary.LittleEndian.Uint16(bytes[2:])
	layout, known := layouts[kind]
	switch {
	case version != wireVersion:
		return brokerMessage{}, fmt.Errorf("version %d of the protocol", version)
	case !known:
		return brokerMessage{}, fmt.Errorf("unknown message 0x%02x", kind)
	case flags != 0:
		return brokerMessage{}, fmt.Errorf("a message 0x%02x with flags 0x%04x", kind, flags)
	case len(bytes) < layout.size, len(bytes) > layout.size && !layout.hasText:
		return brokerMessage{}, fmt.Errorf("a message 0x%02x of %d bytes", kind, len(bytes))
	}
	message := brokerMessage{kind: kind}
	text := bytes[layout.size:]
	if !utf8.Valid(text) {
		return brokerMessage{}, fmt.Errorf("a message 0x%02x with text that is not UTF-8", kind)
	}
	message.text = string(text)
	return message, message.readFields(bytes)
}

// readFields reads the fixed part of a message, whose length has been checked.
func (m *brokerMessage) readFields(bytes []byte) error {
	number := func(at int) uint32 { return binary.LittleEndian.Uint32(bytes[at:]) }
	long := func(at int) uint64 { return binary.LittleEndian.Uint64(bytes[at:]) }
	switch m.kind {
	case kindFound:
		m.guid = readGUID(bytes[4:])
	case kindConnected, kindIncoming:
		m.transport, m.connection = number(4), long(8)
		m.local, m.peer = readAddr(bytes[16:]), readAddr(bytes[48:])
		switch m.transport {
		case transportDescriptor, transportRing, transportArena, transportDirect, transportAttached:
		default:
			return fmt.Errorf("unknown transport %d", m.transport)
		}
		if m.kind == kindIncoming {
			m.pid, m.uid, m.gid = number(80), number(84), number(88)
		}
	case kindListening:
		m.backlog, m.listener = number(4), long(8)
	case kindBound:
		m.backlog, m.listener, m.address = number(4), long(8), readAddr(bytes[16:])
	case kindRefused, kindReset, kindExplained:
		m.code, m.errno = number(4), number(8)
	case kindSuspended:
		value := number(4)
		if value > 1 {
			return fmt.Errorf("suspended is %d", value)
		}
		m.suspended = value == 1
	case kindCID:
		m.cid = number(4)
	case kindStreamReset:
		m.slot, m.seq, m.code, m.errno = number(4), number(8), number(12), number(16)
	}
	return nil
}
