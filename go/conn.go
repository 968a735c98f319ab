package hvsock

import (
	"net"
	"syscall"
	"time"
)

// stream is one end of a connection, by the transport that carries it. Its errors have no addresses.
type stream interface {
	Read(p []byte) (int, error)
	Write(p []byte) (int, error)
	Close() error
	CloseRead() error
	CloseWrite() error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	SyscallConn() (syscall.RawConn, error)
	// abort closes without saying that the data is complete.
	abort() error
}

// HvsockConn is a connection. It implements [net.Conn]; any number of goroutines may use it.
type HvsockConn struct {
	stream stream
	local  HvsockAddr
	remote HvsockAddr
	peer   Peer
	number uint64
}

var _ net.Conn = (*HvsockConn)(nil)

// Peer is what the broker says about the process at the other end.
type Peer struct {
	// Partition is the name of its partition; empty for a connection that this process made.
	Partition string
	// PID, UID and GID are its process, user and group, if it is known: HasCredentials says so. Only listeners
	// in the broker's own partition get them. A pid may have been reused since.
	PID, UID, GID  uint32
	HasCredentials bool
}

// Peer returns the peer of an accepted connection.
func (c *HvsockConn) Peer() Peer { return c.peer }

// Number returns the number of the connection in the broker's control API, and 0 without a broker.
func (c *HvsockConn) Number() uint64 { return c.number }

func (c *HvsockConn) opError(op string, err error) error {
	return opError(op, c.LocalAddr(), c.RemoteAddr(), err)
}

// Read reads data. At a clean end it returns [io.EOF]; if the connection was reset, or the peer was killed, a
// [*ResetError] with the reason, after all data that arrived.
func (c *HvsockConn) Read(p []byte) (int, error) {
	n, err := c.stream.Read(p)
	return n, c.opError("read", err)
}

// Write writes data. It blocks while the peer does not read.
func (c *HvsockConn) Write(p []byte) (int, error) {
	n, err := c.stream.Write(p)
	return n, c.opError("write", err)
}

// Close closes the connection. It tells the peer that all data has been written. Blocked reads and writes end
// with net.ErrClosed. If data that has arrived is unread, the peer gets an error.
func (c *HvsockConn) Close() error {
	return c.opError("close", c.stream.Close())
}

// Abort closes the connection without saying that all data has been written: the peer gets an error after
// what has arrived.
func (c *HvsockConn) Abort() error {
	return c.opError("close", c.stream.abort())
}

// CloseRead stops reading. Writes of the peer fail from now on.
func (c *HvsockConn) CloseRead() error {
	return c.opError("close", c.stream.CloseRead())
}

// CloseWrite tells the peer that all data has been written (half-close). Reading continues.
func (c *HvsockConn) CloseWrite() error {
	return c.opError("close", c.stream.CloseWrite())
}

// LocalAddr returns the [*HvsockAddr] of this end.
func (c *HvsockConn) LocalAddr() net.Addr { return &c.local }

// RemoteAddr returns the [*HvsockAddr] of the peer. The service of a peer that connected is the zero GUID.
func (c *HvsockConn) RemoteAddr() net.Addr { return &c.remote }

// SetDeadline sets the deadlines of reads and writes. Afterwards they fail with an error that matches
// os.ErrDeadlineExceeded. The zero time means none.
func (c *HvsockConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline sets the deadline of reads.
func (c *HvsockConn) SetReadDeadline(t time.Time) error {
	return c.opError("set", c.stream.SetReadDeadline(t))
}

// SetWriteDeadline sets the deadline of writes.
func (c *HvsockConn) SetWriteDeadline(t time.Time) error {
	return c.opError("set", c.stream.SetWriteDeadline(t))
}

// SyscallConn returns the descriptor of the data. A program that reads or writes it directly does not learn how
// the data ends.
func (c *HvsockConn) SyscallConn() (syscall.RawConn, error) {
	raw, err := c.stream.SyscallConn()
	return raw, c.opError("raw-control", err)
}
