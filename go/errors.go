package hvsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// ErrUnsupported is the error of every call on a system without Hyper-V sockets.
var ErrUnsupported = errors.New("this system has no Hyper-V sockets: they are on Linux, and on Windows by go-winio")

// NoBrokerError says that no broker listens at the paths of the endpoint.
type NoBrokerError struct {
	// Tried are the paths.
	Tried []string
}

// Error names the paths and the next step.
func (e *NoBrokerError) Error() string {
	return "no broker listens at " + strings.Join(e.Tried, " or ") +
		"; start one, or set HVSOCK_ENDPOINT to the endpoint of one"
}

// Unwrap returns syscall.ENOENT, which matches os.ErrNotExist.
func (e *NoBrokerError) Unwrap() error { return syscall.ENOENT }

// NoRegistryError says that no registry resolves a name: the process is in a virtual machine without a broker,
// and the broker of its host did not resolve it.
type NoRegistryError struct {
	// Name is the name.
	Name string
	// What is "service" or "partition".
	What string
	// Cause is why the host gave no answer; nil if it was not asked.
	Cause error
}

// Error names the name and the next step.
func (e *NoRegistryError) Error() string {
	text := "no broker runs in this virtual machine, so it uses AF_VSOCK, and no registry "
	switch e.What {
	case "service":
		text += fmt.Sprintf("resolves the service name %q; use its GUID or vsock port, which the host knows", e.Name)
	case "partition":
		text += fmt.Sprintf("resolves the partition name %q; only parent and loopback can be reached", e.Name)
	default:
		text += fmt.Sprintf("can register %q; register it on the host", e.Name)
	}
	text += " (or start a broker here)"
	if e.Cause != nil {
		text += "; the host was asked: " + e.Cause.Error()
	}
	return text
}

// Unwrap returns why the host gave no answer.
func (e *NoRegistryError) Unwrap() error { return e.Cause }

// ProtocolError says that a broker violated the endpoint protocol.
type ProtocolError struct {
	// Path is the endpoint.
	Path string
	// What is the violation.
	What string
}

// Error says what was wrong.
func (e *ProtocolError) Error() string {
	return fmt.Sprintf("the broker at %s violated the endpoint protocol: %s", e.Path, e.What)
}

// descriptorLimitError is the error if the kernel could not pass descriptors to this process. It is temporary,
// so that a server that accepts tries again.
type descriptorLimitError struct{}

func (descriptorLimitError) Error() string {
	return "this process has reached its limit of descriptors; raise its limit of open files"
}
func (descriptorLimitError) Timeout() bool   { return false }
func (descriptorLimitError) Temporary() bool { return true }
func (descriptorLimitError) Unwrap() error   { return syscall.EMFILE }

// timeoutError is the error of an operation whose deadline has passed.
type timeoutError struct{ what string }

func (e *timeoutError) Error() string { return "timed out: " + e.what }
func (*timeoutError) Timeout() bool   { return true }
func (*timeoutError) Temporary() bool { return true }
func (*timeoutError) Is(target error) bool {
	return target == os.ErrDeadlineExceeded || target == context.DeadlineExceeded
}

// bare returns the cause in an error of package net or os, which name another network or file.
func bare(err error) error {
	for {
		switch wrapped := err.(type) {
		case *net.OpError:
			err = wrapped.Err
		case *os.PathError:
			err = wrapped.Err
		case *os.SyscallError:
			err = wrapped.Err
		default:
			if errors.Is(err, os.ErrClosed) {
				return net.ErrClosed
			}
			return err
		}
	}
}

// opError returns the error of an operation with its addresses. io.EOF stays as it is.
func opError(op string, source, addr net.Addr, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: network, Source: source, Addr: addr, Err: bare(err)}
}

// isOver returns whether an error of a read or write means that the connection is over for it.
func isOver(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ENOTCONN)
}
