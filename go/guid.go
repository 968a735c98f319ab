package hvsock

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf16"
)

// GUID names a partition or a service. It has the fields of go-winio's guid.GUID and of Windows' GUID, so a
// value converts to and from those types.
type GUID struct {
	Data1 uint32
	Data2 uint16
	Data3 uint16
	Data4 [8]byte
}

var (
	guidZero      = GUID{}
	guidBroadcast = mustGUID("ffffffff-ffff-ffff-ffff-ffffffffffff")
	guidChildren  = mustGUID("90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd")
	guidLoopback  = mustGUID("e0e16197-dd56-4a10-9195-5ee7a155a838")
	guidParent    = mustGUID("a42e7cda-d03f-480c-9cc2-a4de20abb878")
	guidSiloHost  = mustGUID("36bd0c5c-7276-4223-88ba-7d03b654c568")
	vsockTemplate = mustGUID("00000000-facb-11e6-bd58-64006a7986d3")

	// The namespace from which the id of a container is derived (hcsshim, hvsocketaddr.go).
	containerNamespace = mustGUID("cab70344-facb-41e4-b5e5-ab6592283e6e")
)

// wellKnown has the partitions that a word names. The first word of a value is the one that it prints as.
var wellKnown = []struct {
	word string
	id   GUID
}{
	{"wildcard", guidZero},
	{"zero", guidZero},
	{"broadcast", guidBroadcast},
	{"children", guidChildren},
	{"loopback", guidLoopback},
	{"parent", guidParent},
	{"silohost", guidSiloHost},
}

// HvsockGUIDWildcard returns HV_GUID_WILDCARD: a listener there accepts from every partition that may reach it.
func HvsockGUIDWildcard() GUID { return guidZero }

// HvsockGUIDBroadcast returns HV_GUID_BROADCAST, which is always refused.
func HvsockGUIDBroadcast() GUID { return guidBroadcast }

// HvsockGUIDChildren returns HV_GUID_CHILDREN: a listener there accepts from the partition's children.
func HvsockGUIDChildren() GUID { return guidChildren }

// HvsockGUIDLoopback returns HV_GUID_LOOPBACK: the caller's own partition.
func HvsockGUIDLoopback() GUID { return guidLoopback }

// HvsockGUIDParent returns HV_GUID_PARENT: the caller's parent partition.
func HvsockGUIDParent() GUID { return guidParent }

// HvsockGUIDSiloHost returns HV_GUID_SILOHOST: the host of the caller's container.
func HvsockGUIDSiloHost() GUID { return guidSiloHost }

// VsockServiceID returns the service of a vsock port: the port replaces the first 32 bits of the template
// 00000000-facb-11e6-bd58-64006a7986d3.
func VsockServiceID(port uint32) GUID {
	id := vsockTemplate
	id.Data1 = port
	return id
}

// VsockPort returns the vsock port of a service on the template.
func (g GUID) VsockPort() (port uint32, ok bool) {
	template := g
	template.Data1 = 0
	return g.Data1, template == vsockTemplate
}

// VsockAlias returns the vsock port by which AF_VSOCK programs reach a service: its port on the template, or
// else its alias, which is a hash of the GUID (docs/registry.md). Only the zero GUID has none.
func (g GUID) VsockAlias() (port uint32, ok bool) {
	if port, ok := g.VsockPort(); ok {
		return port, true
	}
	if g == guidZero {
		return 0, false
	}
	bytes := g.ToArray()
	first, last := binary.BigEndian.Uint64(bytes[:8]), binary.BigEndian.Uint64(bytes[8:])
	return 0x40000000 + uint32(mix(first^mix(last))>>34), true
}

// mix is the 64-bit finalizer of MurmurHash3 (Austin Appleby, public domain).
func mix(bits uint64) uint64 {
	bits = (bits ^ bits>>33) * 0xff51afd7ed558ccd
	bits = (bits ^ bits>>33) * 0xc4ceb9fe1a85ec53
	return bits ^ bits>>33
}

// NewGUID returns a random GUID (version 4).
func NewGUID() (GUID, error) {
	var bytes [16]byte
	if _, err := rand.Read(bytes[:]); err != nil {
		return GUID{}, err
	}
	bytes[6] = bytes[6]&0x0f | 0x40
	bytes[8] = bytes[8]&0x3f | 0x80
	return FromArray(bytes), nil
}

// ContainerVMID returns the id of the container with this runtime id, as Windows derives it.
func ContainerVMID(runtimeID string) GUID {
	var name []byte
	for _, unit := range utf16.Encode([]rune(strings.ToUpper(runtimeID))) {
		name = append(name, byte(unit), byte(unit>>8))
	}
	return newV5(containerNamespace, name)
}

// NestedVMID returns the id by which the host knows the container child of the virtual machine vm.
func NestedVMID(vm, child GUID) GUID {
	name := child.ToArray()
	return newV5(vm, name[:])
}

// newV5 returns the name-based GUID of RFC 9562.
func newV5(namespace GUID, name []byte) GUID {
	prefix := namespace.ToArray()
	sum := sha1.Sum(append(prefix[:], name...))
	var bytes [16]byte
	copy(bytes[:], sum[:])
	bytes[6] = bytes[6]&0x0f | 0x50
	bytes[8] = bytes[8]&0x3f | 0x80
	return FromArray(bytes)
}

// FromArray returns the GUID with these bytes in the order of RFC 9562, which is that of its text.
func FromArray(bytes [16]byte) GUID {
	return fromOrder(bytes, binary.BigEndian)
}

// ToArray returns the bytes in the order of RFC 9562.
func (g GUID) ToArray() [16]byte {
	return g.inOrder(binary.BigEndian)
}

// FromWindowsArray returns the GUID with these bytes in Microsoft's order, with the first three fields
// little-endian.
func FromWindowsArray(bytes [16]byte) GUID {
	return fromOrder(bytes, binary.LittleEndian)
}

// ToWindowsArray returns the bytes in Microsoft's order.
func (g GUID) ToWindowsArray() [16]byte {
	return g.inOrder(binary.LittleEndian)
}

func fromOrder(bytes [16]byte, order binary.ByteOrder) GUID {
	g := GUID{
		Data1: order.Uint32(bytes[0:]),
		Data2: order.Uint16(bytes[4:]),
		Data3: order.Uint16(bytes[6:]),
	}
	copy(g.Data4[:], bytes[8:])
	return g
}

func (g GUID) inOrder(order binary.ByteOrder) (bytes [16]byte) {
	order.PutUint32(bytes[0:], g.Data1)
	order.PutUint16(bytes[4:], g.Data2)
	order.PutUint16(bytes[6:], g.Data3)
	copy(bytes[8:], g.Data4[:])
	return bytes
}

// FromString parses every common form of a GUID: either case, with or without hyphens, in braces or
// parentheses, or as a urn:uuid.
func FromString(text string) (GUID, error) {
	bare := strings.TrimSpace(text)
	if strings.HasPrefix(bare, "(") && strings.HasSuffix(bare, ")") && len(bare) >= 2 {
		bare = bare[1 : len(bare)-1]
	}
	switch {
	case len(bare) == 38 && bare[0] == '{' && bare[37] == '}':
		bare = bare[1:37]
	case strings.HasPrefix(bare, "urn:uuid:"):
		bare = strings.TrimPrefix(bare, "urn:uuid:")
		if len(bare) != 36 {
			bare = ""
		}
	}
	if len(bare) == 36 {
		if bare[8] != '-' || bare[13] != '-' || bare[18] != '-' || bare[23] != '-' {
			return GUID{}, notGUID(text)
		}
		bare = bare[:8] + bare[9:13] + bare[14:18] + bare[19:23] + bare[24:]
	}
	var bytes [16]byte
	if len(bare) != 32 {
		return GUID{}, notGUID(text)
	}
	if _, err := hex.Decode(bytes[:], []byte(bare)); err != nil {
		return GUID{}, notGUID(text)
	}
	return FromArray(bytes), nil
}

func notGUID(text string) error {
	const longest = 64
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "")
	}
	return fmt.Errorf("%q is not a GUID; write 32 hexadecimal digits, with or without hyphens, such as "+
		"999e53d4-3d5c-4c3e-8779-bed06ec056e1", text)
}

func mustGUID(text string) GUID {
	g, err := FromString(text)
	if err != nil {
		panic(err)
	}
	return g
}

// String returns the GUID in lower case with hyphens.
func (g GUID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", g.Data1, g.Data2, g.Data3, g.Data4[:2], g.Data4[2:])
}

// MarshalText implements encoding.TextMarshaler.
func (g GUID) MarshalText() ([]byte, error) {
	return []byte(g.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (g *GUID) UnmarshalText(text []byte) error {
	parsed, err := FromString(string(text))
	if err == nil {
		*g = parsed
	}
	return err
}
