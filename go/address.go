package hvsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// HvsockAddr is the address of a service: two GUIDs, as in SOCKADDR_HV. It implements [net.Addr].
type HvsockAddr struct {
	// VMID is the partition.
	VMID GUID
	// ServiceID is the service.
	ServiceID GUID
}

// Network returns "hvsock".
func (*HvsockAddr) Network() string { return network }

// network is the name of the network of all addresses.
const network = "hvsock"

// String returns the address as an hvsock:// URL, which [Dial] takes.
func (a *HvsockAddr) String() string {
	if a == nil {
		return "<nil>"
	}
	return a.Address().String()
}

// Address returns the same address in the form that can also have names.
func (a *HvsockAddr) Address() Address {
	return Address{VMID: a.VMID, ServiceID: a.ServiceID}
}

// The layout of SOCKADDR_HV (hvsocket.h).
const (
	afHyperV       = 34
	sockaddrHvSize = 36
)

// MarshalBinary returns the address as the 36 bytes of a SOCKADDR_HV.
func (a *HvsockAddr) MarshalBinary() ([]byte, error) {
	bytes := make([]byte, 4, sockaddrHvSize)
	binary.LittleEndian.PutUint16(bytes, afHyperV)
	return a.appendTo(bytes), nil
}

// UnmarshalBinary reads a SOCKADDR_HV. It ignores the flags.
func (a *HvsockAddr) UnmarshalBinary(bytes []byte) error {
	if len(bytes) < sockaddrHvSize {
		return fmt.Errorf("a SOCKADDR_HV has %d bytes; this has %d", sockaddrHvSize, len(bytes))
	}
	if family := binary.LittleEndian.Uint16(bytes); family != afHyperV {
		return fmt.Errorf("the address family of a SOCKADDR_HV is %d; this has %d", afHyperV, family)
	}
	*a = readAddr(bytes[4:])
	return nil
}

// appendTo appends the two GUIDs, 32 bytes.
func (a *HvsockAddr) appendTo(bytes []byte) []byte {
	vm, service := a.VMID.ToWindowsArray(), a.ServiceID.ToWindowsArray()
	return append(append(bytes, vm[:]...), service[:]...)
}

// readAddr reads two GUIDs from at least 32 bytes.
func readAddr(bytes []byte) HvsockAddr {
	return HvsockAddr{VMID: readGUID(bytes), ServiceID: readGUID(bytes[16:])}
}

func readGUID(bytes []byte) GUID {
	var array [16]byte
	copy(array[:], bytes)
	return FromWindowsArray(array)
}

// Address is the address of a service, with an id or a name for each of its two parts. The broker resolves
// names.
type Address struct {
	// VMID is the partition, if Partition is empty.
	VMID GUID
	// Partition is the name of the partition, such as "web", or "web/box" for a container in a virtual machine.
	Partition string
	// ServiceID is the service, if Service is empty.
	ServiceID GUID
	// Service is the friendly name of the service.
	Service string
}

// Errors of [ParseAddress].
var (
	errScheme    = errors.New("an address starts with hvsock://, as in hvsock://parent/2761")
	errNoService = errors.New("an address names a partition and a service, as in hvsock://parent/2761")
	errEncoding  = errors.New("the service's name is not percent-encoded UTF-8")
)

const scheme = "hvsock://"

// Join returns the URL of a service in a partition, for [Dial] and [Listen]. The partition is a word such as
// "parent" or "any", a GUID or a name; the service is a vsock port, a GUID or a friendly name. Join does not
// check them.
func Join(partition, service string) string {
	return scheme + partition + "/" + encode(service)
}

// NewAddress parses a partition and a service, as in [Join].
func NewAddress(partition, service string) (Address, error) {
	var address Address
	var err error
	if address.VMID, address.Partition, err = parsePartition(partition); err != nil {
		return Address{}, err
	}
	if address.ServiceID, address.Service, err = parseService(service); err != nil {
		return Address{}, err
	}
	return address, nil
}

// ParseAddress parses a URL: hvsock://parent/HV%20Socket%20Demo, hvsock://web/2761. The last slash is between
// partition and service, since a container in a virtual machine has one in its name.
func ParseAddress(text string) (Address, error) {
	if len(text) < len(scheme) || asciiLower(text[:len(scheme)]) != scheme {
		return Address{}, errScheme
	}
	partition, service, ok := split(text[len(scheme):])
	if !ok || partition == "" || service == "" {
		return Address{}, errNoService
	}
	// Not the text of the error of package url, which speaks of URLs with a host.
	decoded, err := url.PathUnescape(service)
	if err != nil || !utf8.ValidString(decoded) {
		return Address{}, errEncoding
	}
	return NewAddress(partition, decoded)
}

func split(text string) (partition, service string, ok bool) {
	first, others, ok := strings.Cut(text, "/")
	if !ok {
		return "", "", false
	}
	// No container has such a name. So the slash is one of a service's name that was not encoded.
	if _, name, err := parsePartition(first); err == nil && name == "" {
		return first, others, true
	}
	last := strings.LastIndexByte(text, '/')
	return text[:last], text[last+1:], true
}

// asciiLower folds ASCII letters only: no other character stands for one.
func asciiLower(text string) string {
	return strings.Map(func(char rune) rune {
		if char >= 'A' && char <= 'Z' {
			return char + 'a' - 'A'
		}
		return char
	}, text)
}

func wordID(folded string) (GUID, bool) {
	if folded == "any" {
		return guidZero, true
	}
	for _, known := range wellKnown {
		if known.word == folded {
			return known.id, true
		}
	}
	return GUID{}, false
}

func parsePartition(text string) (id GUID, name string, err error) {
	if id, ok := wordID(asciiLower(text)); ok {
		return id, "", nil
	}
	if id, err := FromString(text); err == nil {
		return id, "", nil
	}
	if err := checkPartitionName(text); err != nil {
		return GUID{}, "", fmt.Errorf("not a partition: %w", err)
	}
	return GUID{}, text, nil
}

func parseService(text string) (id GUID, name string, err error) {
	if digits, ok := portDigits(text); ok {
		port, err := strconv.ParseUint(digits, 10, 32)
		if err != nil {
			return GUID{}, "", invalidName("port_too_large", text, "a vsock port is a number up to 4294967295")
		}
		return VsockServiceID(uint32(port)), "", nil
	}
	if id, err := FromString(text); err == nil {
		return id, "", nil
	}
	if err := checkServiceName(text); err != nil {
		return GUID{}, "", fmt.Errorf("not a service: %w", err)
	}
	return GUID{}, text, nil
}

// portDigits returns the digits of a vsock port, "2761" or "port:2761". 32 digits alone are a GUID without hyphens.
func portDigits(text string) (digits string, ok bool) {
	prefixed := strings.HasPrefix(text, "port:")
	digits = strings.TrimPrefix(text, "port:")
	ok = digits != "" && strings.Trim(digits, "0123456789") == "" && (prefixed || len(digits) != 32)
	return digits, ok
}

// check checks an address that may not come from [NewAddress].
func (a Address) check() error {
	if a.Partition != "" {
		if err := checkPartitionName(a.Partition); err != nil {
			return fmt.Errorf("not a partition: %w", err)
		}
	}
	if a.Service != "" {
		if err := checkServiceName(a.Service); err != nil {
			return fmt.Errorf("not a service: %w", err)
		}
	}
	return nil
}

// Network returns "hvsock".
func (Address) Network() string { return network }

// String returns the address as a URL.
func (a Address) String() string {
	return Join(a.partitionText(), a.serviceText())
}

func (a Address) partitionText() string {
	if a.Partition != "" {
		return a.Partition
	}
	for _, known := range wellKnown {
		if known.id == a.VMID {
			return known.word
		}
	}
	return a.VMID.String()
}

func (a Address) serviceText() string {
	if a.Service != "" {
		return a.Service
	}
	if port, ok := a.ServiceID.VsockPort(); ok {
		return strconv.FormatUint(uint64(port), 10)
	}
	return a.ServiceID.String()
}

// ids returns the ids of an address without names.
func (a Address) ids() HvsockAddr {
	return HvsockAddr{VMID: a.VMID, ServiceID: a.ServiceID}
}

func (a Address) hasNames() bool { return a.Partition != "" || a.Service != "" }

// encode percent-encodes all but the unreserved characters of RFC 3986.
func encode(text string) string {
	const digits = "0123456789ABCDEF"
	var out strings.Builder
	for _, char := range []byte(text) {
		alphanumeric := char >= 'a' && char <= 'z' || char >= 'A' && char <= 'Z' || char >= '0' && char <= '9'
		if alphanumeric || strings.IndexByte("-._~", char) >= 0 {
			out.WriteByte(char)
		} else {
			out.Write([]byte{'%', digits[char>>4], digits[char&15]})
		}
	}
	return out.String()
}
