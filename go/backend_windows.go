package hvsock

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// Winio is go-winio's half of AF_HYPERV. The module hvsock.dev/go/winio fills it in:
//
//	import _ "hvsock.dev/go/winio"
type Winio struct {
	// Dial connects to an address. Where the addresses of the connection are of this package's HvsockAddr, its user
	// sees them.
	Dial func(ctx context.Context, addr HvsockAddr) (net.Conn, error)
	// Listen listens at an address.
	Listen func(addr HvsockAddr) (net.Listener, error)
}

var winio struct {
	sync.Mutex
	Winio
}

// RegisterWinio makes this package use go-winio. A later call replaces an earlier one.
func RegisterWinio(functions Winio) {
	winio.Lock()
	defer winio.Unlock()
	winio.Winio = functions
}

var errNoWinio = errors.New("no Hyper-V sockets: import hvsock.dev/go/winio, or call hvsock.RegisterWinio")

func perform(ctx context.Context, r request) (result, error) {
	winio.Lock()
	functions := winio.Winio
	winio.Unlock()
	if functions.Dial == nil || functions.Listen == nil {
		return result{}, errNoWinio
	}
	if r.kind == kindRegister || r.dryRun {
		return result{}, errors.New("on Windows the registry has the services: use the command hvsock")
	}
	if r.address.hasNames() {
		return result{}, errors.New("on Windows an address has ids: `hvsock service show` prints the GUID of a service")
	}
	addr := r.address.ids()
	if r.kind == kindListen {
		listener, err := functions.Listen(addr)
		if err != nil {
			return result{}, ofWinsock(err)
		}
		return result{listener: &HvsockListener{
			acceptor: &winioListener{listener: listener, local: addr},
			local:    addr,
			backlog:  int(r.backlog),
		}}, nil
	}
	conn, err := functions.Dial(ctx, addr)
	if err != nil {
		if ctxErr := contextError(ctx); ctxErr != nil {
			return result{}, ctxErr
		}
		return result{}, ofWinsock(err)
	}
	made := &HvsockConn{stream: &winioStream{conn}, remote: addr}
	if local, ok := conn.LocalAddr().(*HvsockAddr); ok {
		made.local = *local
	}
	return result{conn: made}, nil
}

// ofWinsock returns the refusal for an error number of Winsock that has one meaning only.
func ofWinsock(err error) error {
	var number syscall.Errno
	if !errors.As(err, &number) {
		return bare(err)
	}
	switch int(number) {
	case 10061:
		return refusedWith(NoListener, "the connection was refused: no listener, or the service is not registered", "")
	case 10060:
		return refusedWith(TimedOut, "", "")
	case 10048:
		return refusedWith(AddressInUse, "", "")
	case 10013:
		return refusedWith(Denied, "access is denied by the system", "")
	case 10049:
		return refusedWith(AddressNotAvailable, "", "")
	}
	return bare(err)
}

// winioStream is a connection of go-winio.
type winioStream struct{ net.Conn }

func (s *winioStream) CloseRead() error {
	if half, ok := s.Conn.(interface{ CloseRead() error }); ok {
		return half.CloseRead()
	}
	return ErrUnsupported
}

func (s *winioStream) CloseWrite() error {
	if half, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return ErrUnsupported
}

func (s *winioStream) abort() error { return s.Conn.Close() }

func (s *winioStream) SyscallConn() (syscall.RawConn, error) {
	if raw, ok := s.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return nil, ErrUnsupported
}

// winioListener is a listener of go-winio, which has no deadline.
type winioListener struct {
	listener net.Listener
	local    HvsockAddr
}

func (l *winioListener) accept() (*HvsockConn, error) {
	conn, err := l.listener.Accept()
	if err != nil {
		return nil, bare(err)
	}
	made := &HvsockConn{stream: &winioStream{conn}, local: l.local}
	if remote, ok := conn.RemoteAddr().(*HvsockAddr); ok {
		made.remote = *remote
	}
	return made, nil
}

func (l *winioListener) Close() error { return l.listener.Close() }

func (l *winioListener) SetDeadline(t time.Time) error {
	if deadliner, ok := l.listener.(interface{ SetDeadline(time.Time) error }); ok {
		return deadliner.SetDeadline(t)
	}
	return ErrUnsupported
}
