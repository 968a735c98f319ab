//go:build linux && !386 && !s390x

package hvsock

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// The kernel's AF_VSOCK, for a process in a virtual machine without a broker. Package syscall knows no sockaddr_vm,
// so its calls are made here.

// sockaddrVM is struct sockaddr_vm (linux/vm_sockets.h).
type sockaddrVM struct {
	family   uint16
	reserved uint16
	port     uint32
	cid      uint32
	flags    uint8
	zero     [3]uint8
}

const (
	afVsock                 = 40
	ioctlGetLocalCID        = 0x7b9
	soVMSocketsConnectLimit = 6
)

func vsockCall(number uintptr, fd int, addr *sockaddrVM) error {
	_, _, errno := syscall.Syscall(number, uintptr(fd), uintptr(unsafe.Pointer(addr)), unsafe.Sizeof(*addr))
	if errno != 0 {
		return errno
	}
	return nil
}

func localCID() (uint32, error) {
	device, err := os.Open(vsockDevice)
	if err != nil {
		return 0, err
	}
	defer device.Close()
	var cid uint32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, device.Fd(), ioctlGetLocalCID, uintptr(unsafe.Pointer(&cid)))
	if errno != 0 {
		return 0, errno
	}
	return cid, nil
}

func vsockSocket() (*socketFile, error) {
	fd, err := syscall.Socket(afVsock, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return newSocketFile(fd)
}

// onFD calls f with the descriptor.
func (f *socketFile) onFD(call func(fd int) error) error {
	var err error
	if controlErr := f.raw.Control(func(fd uintptr) { err = call(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}

// connectVsock connects until ctx ends.
func connectVsock(ctx context.Context, target vsockTarget, timeout time.Duration) (*socketFile, error) {
	socket, err := vsockSocket()
	if err != nil {
		return nil, err
	}
	addr := sockaddrVM{family: afVsock, cid: target.cid, port: target.port}
	err = socket.onFD(func(fd int) error {
		limit := syscall.NsecToTimeval(int64(timeout))
		// An old kernel keeps its own limit.
		_, _, _ = syscall.Syscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), afVsock, soVMSocketsConnectLimit,
			uintptr(unsafe.Pointer(&limit)), unsafe.Sizeof(limit), 0)
		return vsockCall(syscall.SYS_CONNECT, fd, &addr)
	})
	if err == syscall.EINPROGRESS || err == syscall.EINTR {
		release := guard(ctx, socket)
		err = socket.waitConnected()
		release()
		if ctxErr := contextError(ctx); ctxErr != nil {
			err = ctxErr
		}
	}
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	return socket, nil
}

// waitConnected waits for the end of a connect.
func (f *socketFile) waitConnected() error {
	var err error
	waitErr := f.raw.Write(func(fd uintptr) bool {
		var number int
		number, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		if err == nil && number != 0 {
			err = syscall.Errno(number)
		}
		if err != nil {
			return true
		}
		// Without an error it is connected, or still connecting.
		var peer sockaddrVM
		size := uint32(unsafe.Sizeof(peer))
		_, _, errno := syscall.Syscall(syscall.SYS_GETPEERNAME, fd, uintptr(unsafe.Pointer(&peer)),
			uintptr(unsafe.Pointer(&size)))
		return errno == 0
	})
	if waitErr != nil {
		return waitErr
	}
	return err
}

// performVsock does what a request asks by AF_VSOCK. The host's broker resolves names.
func performVsock(ctx context.Context, r request) (result, error) {
	machine := detectMachine()
	if r.kind == kindRegister {
		return result{}, &NoRegistryError{Name: r.name, What: "registration"}
	}
	address, err := resolveByHost(ctx, machine, r.address)
	if err != nil {
		return result{}, err
	}
	target, err := machine.resolve(r.kind, address)
	switch {
	case r.dryRun:
		return explainVsock(ctx, machine, r, target, err)
	case err != nil:
		return result{}, err
	case r.kind == kindListen:
		return listenVsock(machine, r, target)
	}
	socket, err := connectVsock(ctx, target, r.timeout)
	if err != nil {
		var timeout *timeoutError
		if errors.As(err, &timeout) || errors.Is(err, context.Canceled) {
			return result{}, err
		}
		return result{}, whyByHost(ctx, machine, target, target.connectError(machine, err))
	}
	local := HvsockAddr{VMID: guidLoopback}
	return result{conn: &HvsockConn{stream: &vsockStream{socket}, local: local, remote: target.addr}}, nil
}

// explainVsock says what this machine knows; the rest is the host's.
func explainVsock(ctx context.Context, m machine, r request, target vsockTarget, err error) (result, error) {
	explanation := &Explanation{Refusal: RefusalOf(err)}
	if err == nil && target.cid != cidLocal {
		asked, err := askHostWhy(ctx, m, r.kind, target.addr.ServiceID)
		if err != nil {
			return result{}, err
		}
		explanation = asked
	}
	return result{explanation: explanation}, nil
}

// vsockStream is a connection by AF_VSOCK, which has one kind of end.
type vsockStream struct{ socket *socketFile }

func (s *vsockStream) Read(p []byte) (int, error) {
	n, err := s.socket.Read(p)
	// What the kernel says after this end has shut down and the peer has closed.
	if errors.Is(err, syscall.ENOTCONN) {
		err = io.EOF
	}
	return n, err
}

func (s *vsockStream) Write(p []byte) (int, error)           { return s.socket.Write(p) }
func (s *vsockStream) Close() error                          { return s.socket.Close() }
func (s *vsockStream) abort() error                          { return s.socket.Close() }
func (s *vsockStream) CloseRead() error                      { return s.socket.shutdown(syscall.SHUT_RD) }
func (s *vsockStream) CloseWrite() error                     { return s.socket.shutdown(syscall.SHUT_WR) }
func (s *vsockStream) SetReadDeadline(t time.Time) error     { return s.socket.SetReadDeadline(t) }
func (s *vsockStream) SetWriteDeadline(t time.Time) error    { return s.socket.SetWriteDeadline(t) }
func (s *vsockStream) SyscallConn() (syscall.RawConn, error) { return s.socket.raw, nil }

// vsockListener is a listener of the kernel, with a filter for the peers that its address permits.
type vsockListener struct {
	*socketFile
	machine machine
	target  vsockTarget
}

func listenVsock(m machine, r request, target vsockTarget) (result, error) {
	socket, err := vsockSocket()
	if err != nil {
		return result{}, vsockSocketError(err)
	}
	addr := sockaddrVM{family: afVsock, cid: target.cid, port: target.port}
	err = socket.onFD(func(fd int) error {
		if err := vsockCall(syscall.SYS_BIND, fd, &addr); err != nil {
			return err
		}
		return syscall.Listen(fd, int(r.backlog))
	})
	if err != nil {
		_ = socket.Close()
		return result{}, target.listenError(err)
	}
	return result{listener: &HvsockListener{
		acceptor: &vsockListener{socketFile: socket, machine: m, target: target},
		local:    target.addr,
		backlog:  int(r.backlog),
	}}, nil
}

func (l *vsockListener) accept() (*HvsockConn, error) {
	for {
		fd, addr, err := l.acceptSocket()
		if err != nil {
			return nil, ofDescriptors(err)
		}
		peer, name := l.machine.peer(addr.cid, addr.port)
		socket, err := newSocketFile(fd)
		if err != nil {
			return nil, ofDescriptors(err)
		}
		if !l.target.accepts(peer) {
			// The peer sees a closed connection and no reason.
			_ = socket.Close()
			continue
		}
		return &HvsockConn{
			stream: &vsockStream{socket},
			local:  l.target.addr,
			remote: peer,
			peer:   Peer{Partition: name},
		}, nil
	}
}

func (l *vsockListener) acceptSocket() (fd int, addr sockaddrVM, err error) {
	waitErr := l.raw.Read(func(listener uintptr) bool {
		for {
			size := uint32(unsafe.Sizeof(addr))
			accepted, _, errno := syscall.Syscall6(syscall.SYS_ACCEPT4, listener, uintptr(unsafe.Pointer(&addr)),
				uintptr(unsafe.Pointer(&size)), syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0, 0)
			switch errno {
			case 0:
				fd, err = int(accepted), nil
				return true
			case syscall.EINTR, syscall.ECONNABORTED:
			case syscall.EAGAIN:
				return false
			default:
				err = errno
				return true
			}
		}
	})
	if waitErr != nil {
		return 0, addr, waitErr
	}
	return fd, addr, err
}

// uplinkPort is the vsock port of the host at which its broker answers guests (docs/uplink.md).
const uplinkPort = 920

// dialHostBroker connects to the host's broker.
var dialHostBroker = func(ctx context.Context) (hostConn, error) {
	target := vsockTarget{cid: cidHost, port: uplinkPort}
	return connectVsock(ctx, target, DefaultTimeout)
}

// hostConn is a stream to the host's broker.
type hostConn interface {
	io.ReadWriteCloser
	SetDeadline(t time.Time) error
}

// askHost asks questions and returns the answers, in their order.
func askHost(ctx context.Context, m machine, questions ...[]byte) ([][]byte, error) {
	if m.kind == machineHyperV || m.kind == machineHost {
		return nil, errors.New("this machine has no host with a broker of hvsock")
	}
	conn, err := dialHostBroker(ctx)
	if err != nil {
		if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, errors.New("the host refused a connection to vsock port 920, so no broker of hvsock serves " +
				"this machine there, or an older one")
		}
		return nil, bare(err)
	}
	defer conn.Close()
	release := guard(ctx, conn)
	defer release()
	var frames []byte
	for _, question := range questions {
		frames = append(binary.LittleEndian.AppendUint32(frames, uint32(len(question))), question...)
	}
	if _, err := conn.Write(frames); err != nil {
		return nil, bare(err)
	}
	answers := make([][]byte, 0, len(questions))
	for range questions {
		answer, err := readFrame(conn)
		if err != nil {
			if ctxErr := contextError(ctx); ctxErr != nil {
				return nil, ctxErr
			}
			return nil, err
		}
		answers = append(answers, answer)
	}
	return answers, nil
}
