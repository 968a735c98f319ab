package hvsock

import (
	"context"
	"errors"
	"net"
	"time"
)

// DefaultBacklog is the number of connections that may wait to be accepted.
const DefaultBacklog = 128

// ListenConfig has the options of a listener. The zero value is ready for use.
type ListenConfig struct {
	// Backlog is the number of connections that may wait to be accepted; 0 is DefaultBacklog. The broker may
	// grant fewer.
	Backlog int
	// Endpoint is the path of the broker's endpoint socket. Empty: as the environment says.
	Endpoint string
	// ConnectedSuspend keeps accepted connections while a partition is paused (HVSOCKET_CONNECTED_SUSPEND).
	ConnectedSuspend bool
}

// Listen listens at an hvsock:// URL; see [Join]. The partition says from whom to accept.
func Listen(ctx context.Context, address string) (*HvsockListener, error) {
	return new(ListenConfig).Listen(ctx, address)
}

// ListenHvsock listens at an address, as go-winio's.
func ListenHvsock(addr *HvsockAddr) (*HvsockListener, error) {
	if addr == nil {
		return nil, opError("listen", nil, nil, errors.New("missing address"))
	}
	return new(ListenConfig).ListenAddress(context.Background(), addr.Address())
}

// Listen listens at an hvsock:// URL.
func (c *ListenConfig) Listen(ctx context.Context, address string) (*HvsockListener, error) {
	parsed, err := ParseAddress(address)
	if err != nil {
		return nil, opError("listen", nil, nil, &net.AddrError{Err: err.Error(), Addr: address})
	}
	return c.ListenAddress(ctx, parsed)
}

// ListenAddress listens at an address that may have names.
func (c *ListenConfig) ListenAddress(ctx context.Context, address Address) (*HvsockListener, error) {
	if err := address.check(); err != nil {
		return nil, opError("listen", nil, address, err)
	}
	backlog := uint32(DefaultBacklog)
	if c.Backlog > 0 {
		backlog = uint32(c.Backlog)
	}
	if err := contextError(ctx); err != nil {
		return nil, opError("listen", nil, address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	result, err := perform(ctx, request{
		kind:             kindListen,
		address:          address,
		endpoint:         c.Endpoint,
		backlog:          backlog,
		connectedSuspend: c.ConnectedSuspend,
	})
	if err != nil {
		return nil, opError("listen", nil, address, err)
	}
	return result.listener, nil
}

// acceptor is a listener by the backend that carries it. Its errors have no addresses.
type acceptor interface {
	accept() (*HvsockConn, error)
	Close() error
	SetDeadline(t time.Time) error
}

// HvsockListener accepts connections. It implements [net.Listener]; any number of goroutines may use it.
type HvsockListener struct {
	acceptor acceptor
	local    HvsockAddr
	backlog  int
}

var _ net.Listener = (*HvsockListener)(nil)

// Accept waits for a connection and returns it, a [*HvsockConn].
func (l *HvsockListener) Accept() (net.Conn, error) {
	conn, err := l.AcceptHvsock()
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// AcceptHvsock waits for a connection and returns it. When another goroutine closes the listener, it ends with
// net.ErrClosed; when the broker ends the listener, with a [*ResetError].
func (l *HvsockListener) AcceptHvsock() (*HvsockConn, error) {
	conn, err := l.acceptor.accept()
	if err != nil {
		return nil, opError("accept", nil, l.Addr(), err)
	}
	return conn, nil
}

// Close ends the listener. Connections that were not accepted are reset; accepted ones go on.
func (l *HvsockListener) Close() error {
	return opError("close", nil, l.Addr(), l.acceptor.Close())
}

// Addr returns the [*HvsockAddr] that the listener has, without names.
func (l *HvsockListener) Addr() net.Addr { return &l.local }

// Backlog returns the backlog as granted.
func (l *HvsockListener) Backlog() int { return l.backlog }

// SetDeadline sets the deadline of Accept. The zero time means none.
func (l *HvsockListener) SetDeadline(t time.Time) error {
	return opError("set", nil, l.Addr(), l.acceptor.SetDeadline(t))
}
