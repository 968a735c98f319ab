package hvsock

import (
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// sendTimeout bounds a send to the broker, which reads its sockets all the time.
const sendTimeout = 5 * time.Second

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// control is the endpoint connection of an established connection. It has the meaning of the data's end, which is
// ambiguous by itself.
//
// Nobody reads it until the data ends or fails, so a connection needs no goroutine of its own.
type control struct {
	conn *net.UnixConn
	raw  syscall.RawConn

	mutex  sync.Mutex
	status endStatus
}

// endStatus is what the broker has said.
type endStatus struct {
	// ended: the peer's data ends where the descriptor does.
	ended bool
	// reset is why the connection was reset.
	reset error
	// brokerGone: reset says only that the broker has closed the connection.
	brokerGone bool
}

func (s endStatus) isFinal() bool { return s.ended || s.reset != nil }

// resetReason returns why the connection was reset. A broker that has only closed it after a clean end of the peer's
// data is none: the peer has closed for good.
func (s endStatus) resetReason() error {
	if s.ended && s.brokerGone {
		return nil
	}
	return s.reset
}

// meaning returns what the end of the data means, or nil if it is not known yet.
func (s endStatus) meaning() error {
	if s.ended {
		return io.EOF
	}
	return s.reset
}

func newControl(conn *net.UnixConn) (*control, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, bare(err)
	}
	return &control{conn: conn, raw: raw}, nil
}

// drain receives all pending messages and returns what is known. It does not wait, and passes by a goroutine that
// does.
func (c *control) drain() endStatus {
	// An error means that the connection is closed: nothing more will be known.
	_ = c.raw.Control(func(fd uintptr) { c.receiveAll(int(fd)) })
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.status
}

// wait waits until the meaning of the end is known, until the read deadline, or until close.
func (c *control) wait() (endStatus, error) {
	err := c.raw.Read(func(fd uintptr) bool { return c.receiveAll(int(fd)) })
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.status, err
}

// receiveAll receives all pending messages, and returns whether the meaning of the end is known.
func (c *control) receiveAll(fd int) bool {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for c.status.reset == nil && c.receive(fd) {
	}
	if c.status.isFinal() {
		// Wakes a goroutine that waits for the message that this one has received. Nobody waits again.
		_ = c.conn.SetReadDeadline(past)
	}
	return c.status.isFinal()
}

// receive receives one message. It returns false if there is none.
func (c *control) receive(fd int) bool {
	var bytes [maxMessage + 1]byte
	n, _, _, _, err := syscall.Recvmsg(fd, bytes[:], nil, syscall.MSG_DONTWAIT|syscall.MSG_CMSG_CLOEXEC)
	// It reports once that the broker closed with a message unread, before what the broker had sent.
	for tries := 0; tries < 4 && (err == syscall.EINTR || err == syscall.ECONNRESET); tries++ {
		n, _, _, _, err = syscall.Recvmsg(fd, bytes[:], nil, syscall.MSG_DONTWAIT|syscall.MSG_CMSG_CLOEXEC)
	}
	switch {
	case err == syscall.EAGAIN:
		return false
	case err != nil || n == 0:
		c.status.reset, c.status.brokerGone = brokerGone(), true
		return true
	}
	message, err := decode(bytes[:n])
	switch {
	case err != nil:
		c.status.reset = &ProtocolError{Path: "control", What: err.Error()}
	case message.kind == kindEnded:
		c.status.ended = true
	case message.kind == kindReset || message.kind == kindRefused:
		c.status.reset = &ResetError{Reason: newRefused(message.code, message.text)}
	case message.kind == kindSuspended:
		// For a ring only.
	default:
		c.status.reset = &ProtocolError{Path: "control", What: "an unexpected message"}
	}
	return true
}

// send sends a message. If the broker is gone, its error is the reason. A connection whose peer has closed for good
// needs no message.
func (c *control) send(message []byte) error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	_, err := c.conn.Write(message)
	if err != nil && isOver(err) {
		status := c.drain()
		if reset := status.resetReason(); reset != nil || status.ended {
			return reset
		}
		return brokerGone()
	}
	return err
}

func (c *control) setReadDeadline(t time.Time) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.status.isFinal() {
		return nil
	}
	return c.conn.SetReadDeadline(t)
}
