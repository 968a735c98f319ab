package hvsock

import (
	"errors"
	"fmt"
	"syscall"
)

// Code is the reason of a refusal or reset, by its number in the endpoint protocol. It is an error, for
// [errors.Is].
type Code uint32

// The codes.
const (
	// Unregistered: the service is not registered in the registry that decides.
	Unregistered Code = 1
	// Disabled: the service is registered but disabled. The detail is the setting.
	Disabled Code = 2
	// Denied: an access rule denies it. The detail is the rule.
	Denied Code = 3
	// PartitionUnknown: no partition has this id. Only the host gets this refusal.
	PartitionUnknown Code = 4
	// PartitionOff: one of the two partitions is off.
	PartitionOff Code = 5
	// PartitionPaused: one of the two partitions is paused.
	PartitionPaused Code = 6
	// NotReachable: the requester cannot reach a partition with this id. It may or may not exist.
	NotReachable Code = 7
	// NotSupported: the address has no meaning in the requester's partition.
	NotSupported Code = 8
	// NoListener: no listener at the target accepts the requester.
	NoListener Code = 9
	// WildcardNotAllowed: the service does not allow listeners at the wildcard.
	WildcardNotAllowed Code = 10
	// BacklogFull: the listener's backlog of pending connections is full.
	BacklogFull Code = 11
	// AddressInUse: another listener has the address.
	AddressInUse Code = 12
	// AddressNotAvailable: it is not possible to connect to, or listen at, the address.
	AddressNotAvailable Code = 13
	// TimedOut: the peer did not answer in time.
	TimedOut Code = 14
	// ServiceNotMappable: the service's GUID maps to no vsock port, and the peer uses vsock ports.
	ServiceNotMappable Code = 15
	// LimitReached: a table is full. The detail is the limit.
	LimitReached Code = 16
	// Reset: the connection was reset. The detail is the cause.
	Reset Code = 17
	// NoDriver: the guest of a virtual machine has not started its vsock driver.
	NoDriver Code = 18
	// PartitionExited: one of the two partitions is a container that has exited.
	PartitionExited Code = 19
)

// codes has one row for each code, in their order. The numbers of Winsock are from winsock2.h.
var codes = [...]struct {
	label string
	errno syscall.Errno
	wsa   int
	text  string
}{
	{"unregistered", syscall.ECONNREFUSED, 10061, "the service is not registered"},
	{"disabled", syscall.EPERM, 10022, "the service is disabled by %s"},
	{"denied", syscall.EACCES, 10013, "access is denied by %s"},
	{"partition_unknown", syscall.EADDRNOTAVAIL, 10049, "no partition has this id"},
	{"partition_off", syscall.EHOSTUNREACH, 10051, "the partition is off"},
	{"partition_paused", syscall.EHOSTDOWN, 10050, "the partition is paused"},
	{"not_reachable", syscall.EADDRNOTAVAIL, 10049, "no partition that can be reached from here has this id"},
	{"not_supported", syscall.EOPNOTSUPP, 10045, "this address has no meaning in this partition"},
	{"no_listener", syscall.ECONNREFUSED, 10061, "no listener accepts this service there"},
	{"wildcard_not_allowed", syscall.EACCES, 10013, "the service does not allow listening at the wildcard"},
	{"backlog_full", syscall.ECONNREFUSED, 10061, "the listener's backlog is full"},
	{"address_in_use", syscall.EADDRINUSE, 10048, "another listener has this address"},
	{"address_not_available", syscall.EADDRNOTAVAIL, 10049, "this address is not valid for connecting or listening"},
	{"timed_out", syscall.ETIMEDOUT, 10060, "timed out: the peer did not answer"},
	{"service_not_mappable", syscall.EADDRNOTAVAIL, 10049,
		"the service's GUID maps to no vsock port, and the peer uses vsock ports"},
	{"limit_reached", syscall.ENOBUFS, 10055, "the limit on %s is reached"},
	{"reset", syscall.ECONNRESET, 10054, "the connection was reset: %s"},
	{"no_driver", syscall.EHOSTUNREACH, 10051, "the guest has not started its vsock driver"},
	{"partition_exited", syscall.EHOSTUNREACH, 10051, "the container has exited"},
}

// hasDetail returns whether the text of a code has a place for the detail.
func (c Code) hasDetail() bool {
	return c == Disabled || c == Denied || c == LimitReached || c == Reset
}

// Label returns the code's name in metrics, logs and JSON, such as "no_listener".
func (c Code) Label() string {
	if c < 1 || int(c) > len(codes) {
		return codes[Reset-1].label
	}
	return codes[c-1].label
}

// Error returns the label.
func (c Code) Error() string { return c.Label() }

// RefusedError says why the broker or the system refused a request, or why it reset a connection.
//
// It matches its Code and its Errno with [errors.Is].
type RefusedError struct {
	// Code is the reason.
	Code Code
	// Label is the name of the code, such as "no_listener".
	Label string
	// Detail is the rule, setting, limit or cause that goes with some codes.
	Detail string
	// Errno is the nearest error number.
	Errno syscall.Errno
	// Fix says in plain English what would turn the refusal into a success; empty if that is not known.
	Fix string
	// Explanation has the checks that were made; nil if the broker sent none.
	Explanation *Explanation

	// text replaces the text of the code where more is known.
	text string
}

// newRefused returns the error for a code and detail. An unknown code (of a newer broker) is a reset whose
// cause names it.
func newRefused(code uint32, detail string) *RefusedError {
	if code < 1 || int(code) > len(codes) {
		cause := fmt.Sprintf("unknown reason %d", code)
		if detail != "" {
			cause += ": " + detail
		}
		code, detail = uint32(Reset), cause
	}
	row := codes[code-1]
	if !Code(code).hasDetail() {
		detail = ""
	}
	return &RefusedError{Code: Code(code), Label: row.label, Detail: detail, Errno: row.errno}
}

// refusedWith returns the error for a code with a text of its own.
func refusedWith(code Code, text, fix string) *RefusedError {
	refused := newRefused(uint32(code), "")
	refused.text, refused.Fix = text, fix
	return refused
}

// Error returns the reason, and after a semicolon what would help.
func (e *RefusedError) Error() string {
	if e.Fix != "" {
		return e.reason() + "; " + e.Fix
	}
	return e.reason()
}

func (e *RefusedError) reason() string {
	text := e.text
	if text == "" {
		row := e.row()
		text = codes[row].text
		if Code(row + 1).hasDetail() {
			text = fmt.Sprintf(text, e.Detail)
		}
	}
	return visible(text)
}

// row returns the index in codes, also for an error that a program made itself.
func (e *RefusedError) row() int {
	if e.Code < 1 || int(e.Code) > len(codes) {
		return int(Reset) - 1
	}
	return int(e.Code) - 1
}

// Is reports whether target is the same Code, or another RefusedError with it.
func (e *RefusedError) Is(target error) bool {
	switch target := target.(type) {
	case Code:
		return target == e.Code
	case *RefusedError:
		return target.Code == e.Code
	}
	return false
}

// Unwrap returns the Errno.
func (e *RefusedError) Unwrap() error { return e.Errno }

// WSA returns the error number of Winsock.
func (e *RefusedError) WSA() int { return codes[e.row()].wsa }

// Timeout returns whether the peer did not answer in time.
func (e *RefusedError) Timeout() bool { return e.Code == TimedOut }

// Temporary returns whether the same request may succeed in a moment without anybody's doing.
func (e *RefusedError) Temporary() bool {
	return e.Code == TimedOut || e.Code == BacklogFull || e.Code == LimitReached
}

// ResetError says why an established connection, listener or lease ended. It matches syscall.ECONNRESET, and
// what its reason matches.
type ResetError struct {
	// Reason is why.
	Reason *RefusedError
}

func resetBecause(cause string) *ResetError {
	return &ResetError{Reason: newRefused(uint32(Reset), cause)}
}

// Error returns the reason.
func (e *ResetError) Error() string { return e.Reason.Error() }

// Is reports whether target is syscall.ECONNRESET.
func (e *ResetError) Is(target error) bool { return target == syscall.ECONNRESET }

// Unwrap returns the reason.
func (e *ResetError) Unwrap() error { return e.Reason }

// RefusalOf returns the refusal in an error, or nil.
func RefusalOf(err error) *RefusedError {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused
	}
	return nil
}
