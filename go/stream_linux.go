package hvsock

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// socketFile is a stream socket of any family, by the runtime's poller. Package net knows no AF_VSOCK, which a
// connection to a guest may be.
type socketFile struct {
	*os.File
	raw syscall.RawConn
}

// newSocketFile takes a descriptor, also when it fails.
func newSocketFile(descriptor int) (*socketFile, error) {
	// Only a non-blocking descriptor becomes one of the poller.
	if err := syscall.SetNonblock(descriptor, true); err != nil {
		_ = syscall.Close(descriptor)
		return nil, err
	}
	file := os.NewFile(uintptr(descriptor), network)
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, bare(err)
	}
	return &socketFile{File: file, raw: raw}, nil
}

func (f *socketFile) shutdown(how int) error {
	var err error
	if controlErr := f.raw.Control(func(fd uintptr) { err = syscall.Shutdown(int(fd), how) }); controlErr != nil {
		return controlErr
	}
	return err
}

// brokerStream is a connection by the descriptor or the direct transport: bytes go through data, and control
// has the messages about them.
type brokerStream struct {
	data    *socketFile
	control *control
	// direct: the broker does not see the end of the data by itself.
	direct bool

	readClosed atomic.Bool
	lost       atomic.Bool
	writeEnded atomic.Bool
	asked      atomic.Bool
}

// newBrokerConnection takes the descriptor data, also when it fails, and the endpoint connection if it succeeds.
func newBrokerConnection(message brokerMessage, data int, endpoint *net.UnixConn) (*HvsockConn, error) {
	if message.transport&ownTransports == 0 {
		_ = syscall.Close(data)
		return nil, &wireFault{"a transport that was not offered"}
	}
	file, err := newSocketFile(data)
	if err != nil {
		return nil, ofDescriptors(err)
	}
	control, err := newControl(endpoint)
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	const unknown = 0xffffffff
	return &HvsockConn{
		stream: &brokerStream{data: file, control: control, direct: message.transport == transportDirect},
		local:  message.local,
		remote: message.peer,
		number: message.connection,
		peer: Peer{
			Partition:      message.text,
			PID:            message.pid,
			UID:            message.uid,
			GID:            message.gid,
			HasCredentials: message.kind == kindIncoming && message.uid != unknown,
		},
	}, nil
}

func (s *brokerStream) Read(p []byte) (int, error) {
	if s.readClosed.Load() {
		return 0, io.EOF
	}
	n, err := s.data.Read(p)
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF || errors.Is(err, syscall.ENOTCONN):
		return 0, s.end(nil)
	case isOver(err):
		return 0, s.end(bare(err))
	}
	return 0, err
}

// end returns what the end of the data means: io.EOF only after the broker's SHUTDOWN. err is that of the read, if it
// failed.
func (s *brokerStream) end(err error) error {
	if s.readClosed.Load() {
		return io.EOF
	}
	status := s.control.drain()
	// The peer closed with bytes unread, which the kernel says once. The broker, which sees no byte, gives its reason
	// if it has one.
	if s.direct && (s.lost.Load() || errors.Is(err, syscall.ECONNRESET)) {
		s.lost.Store(true)
		if reset := status.resetReason(); reset != nil {
			return reset
		}
		return resetBecause("the other end closed without reading all data")
	}
	if meaning := status.meaning(); meaning != nil {
		return meaning
	}
	if s.direct {
		if s.asked.CompareAndSwap(false, true) {
			if err := s.control.send(encodeSetOption(optionConfirmEnd, 1)); err != nil {
				return err
			}
		}
	}
	status, err = s.control.wait()
	if meaning := status.meaning(); meaning != nil {
		return meaning
	}
	return err
}

func (s *brokerStream) Write(p []byte) (int, error) {
	n, err := s.data.Write(p)
	if err != nil && isOver(err) && !s.writeEnded.Load() {
		if reset := s.control.drain().resetReason(); reset != nil {
			return n, reset
		}
	}
	return n, err
}

func (s *brokerStream) CloseRead() error {
	s.readClosed.Store(true)
	if err := s.data.shutdown(syscall.SHUT_RD); err != nil {
		return err
	}
	return s.data.discardAllButOne()
}

// discardAllButOne discards what nobody reads any more: a writer that waits for free space is woken by free space
// only. One byte stays, so that a later Close tells the writer that its data was not read.
func (f *socketFile) discardAllButOne() error {
	return f.raw.Control(func(fd uintptr) {
		var discarded [4096]byte
		for {
			var unread int32
			_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCINQ, uintptr(unsafe.Pointer(&unread)))
			if errno != 0 || unread <= 1 {
				return
			}
			most := discarded[:]
			if int(unread)-1 < len(most) {
				most = most[:unread-1]
			}
			n, _, err := syscall.Recvfrom(int(fd), most, syscall.MSG_DONTWAIT)
			if n <= 0 || err != nil && err != syscall.EINTR {
				return
			}
		}
	})
}

// CloseWrite announces the end of the data before the end itself: an end without the message means a crash, so a
// message that cannot be sent is not followed by the end.
func (s *brokerStream) CloseWrite() error {
	if !s.writeEnded.CompareAndSwap(false, true) {
		return nil
	}
	if err := s.control.send(header(kindShutdown, 0)); err != nil {
		s.writeEnded.Store(false)
		return err
	}
	return s.data.shutdown(syscall.SHUT_WR)
}

// Close announces the end of the data and closes both descriptors, control last.
func (s *brokerStream) Close() error {
	if s.writeEnded.CompareAndSwap(false, true) {
		// The peer of a broker that does not take it learns of a crash, which is what it is.
		_ = s.control.send(header(kindShutdown, 0))
	}
	return s.abort()
}

func (s *brokerStream) abort() error {
	err := s.data.Close()
	_ = s.control.conn.Close()
	return err
}

func (s *brokerStream) SetReadDeadline(t time.Time) error {
	if err := s.data.SetReadDeadline(t); err != nil {
		return err
	}
	return s.control.setReadDeadline(t)
}

func (s *brokerStream) SetWriteDeadline(t time.Time) error { return s.data.SetWriteDeadline(t) }

func (s *brokerStream) SyscallConn() (syscall.RawConn, error) { return s.data.raw, nil }
