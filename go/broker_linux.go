package hvsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// maxDescriptors is the most descriptors in one message.
const maxDescriptors = 8

// brokerConn is a connection to an endpoint, before it is a socket.
type brokerConn struct {
	conn *net.UnixConn
	path string
}

// reply is a message from the broker with its descriptors.
type reply struct {
	brokerMessage
	descriptors []int
}

func (r *reply) close() {
	for _, descriptor := range r.descriptors {
		_ = syscall.Close(descriptor)
	}
	r.descriptors = nil
}

// take checks that a reply has count descriptors, and returns them.
func (r *reply) take(count int) ([]int, error) {
	if len(r.descriptors) != count {
		got := len(r.descriptors)
		r.close()
		return nil, &wireFault{fmt.Sprintf("a message 0x%02x with %d descriptors and not %d", r.kind, got, count)}
	}
	descriptors := r.descriptors
	r.descriptors = nil
	return descriptors, nil
}

// dialBroker connects to the first of the paths where a broker listens.
func dialBroker(ctx context.Context, paths []string) (*brokerConn, error) {
	var dialer net.Dialer
	for _, path := range paths {
		for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
			conn, err := dialer.DialContext(ctx, "unixpacket", path)
			if err == nil {
				return &brokerConn{conn: conn.(*net.UnixConn), path: path}, nil
			}
			if ctxErr := contextError(ctx); ctxErr != nil {
				return nil, ctxErr
			}
			// The broker's queue of clients is full. The kernel has no readiness for that.
			if errors.Is(err, syscall.EAGAIN) && sleep(ctx, wait) {
				continue
			}
			if isAbsent(err) {
				break
			}
			return nil, &os.PathError{Op: "the endpoint", Path: path, Err: bare(err)}
		}
	}
	return nil, &NoBrokerError{Tried: paths}
}

// isAbsent returns whether no broker listens at a path, so that the next path is tried.
func isAbsent(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ECONNREFUSED)
}

// send sends a message. If the broker has closed, its reason is the next reply.
func (b *brokerConn) send(message []byte) error {
	if _, err := b.conn.Write(message); err != nil && !isOver(err) {
		return bare(err)
	}
	return nil
}

// receive receives a message. Its error is final for the endpoint connection, but for that of a deadline.
func (b *brokerConn) receive() (reply, error) {
	message, err := receiveMessage(b.conn)
	// A broker that closes with a message unread makes this fail once, before what it has sent is received.
	if errors.Is(err, syscall.ECONNRESET) {
		message, err = receiveMessage(b.conn)
	}
	if err == io.EOF || err != nil && isOver(err) {
		return reply{}, brokerGone()
	}
	return message, b.fault(err)
}

// fault returns err, with the endpoint if it is a violation of the protocol.
func (b *brokerConn) fault(err error) error {
	var fault *wireFault
	if errors.As(err, &fault) {
		return &ProtocolError{Path: b.path, What: fault.what}
	}
	return err
}

// brokerGone is the error for a broker that ends without a message.
func brokerGone() *ResetError { return resetBecause("the broker went away") }

// wireFault says how a message violates the protocol.
type wireFault struct{ what string }

func (f *wireFault) Error() string { return f.what }

// receiveMessage receives one message with its descriptors, which are close-on-exec.
func receiveMessage(conn *net.UnixConn) (reply, error) {
	var bytes [maxMessage + 1]byte
	control := make([]byte, syscall.CmsgSpace(maxDescriptors*4))
	n, controlLen, flags, _, err := conn.ReadMsgUnix(bytes[:], control)
	if err != nil {
		return reply{}, bareOrEOF(err)
	}
	descriptors := rights(control[:controlLen])
	if n == 0 {
		(&reply{descriptors: descriptors}).close()
		return reply{}, io.EOF
	}
	message, err := decodeAnyVersion(bytes[:n])
	received := reply{brokerMessage: message, descriptors: descriptors}
	if err != nil {
		received.close()
		return reply{}, &wireFault{err.Error()}
	}
	refuses := message.kind == kindRefused || message.kind == kindReset || message.kind == kindExplained
	if flags&syscall.MSG_CTRUNC != 0 && !refuses {
		received.close()
		// With the message: its number is needed to free a place in the backlog.
		return received, descriptorLimitError{}
	}
	return received, nil
}

func bareOrEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	return bare(err)
}

// rights returns the descriptors in control messages.
func rights(control []byte) []int {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	var all []int
	for i := range messages {
		if descriptors, err := syscall.ParseUnixRights(&messages[i]); err == nil {
			all = append(all, descriptors...)
		}
	}
	return all
}

// guard ends the reads and writes of conn when ctx ends, until the function that it returns is called. That
// function waits until no deadline will be set any more, and removes the one that was.
func guard(ctx context.Context, conn interface{ SetDeadline(time.Time) error }) func() {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ctx.Done():
			_ = conn.SetDeadline(time.Unix(1, 0))
		case <-stop:
		}
	}()
	return func() {
		close(stop)
		<-stopped
		_ = conn.SetDeadline(time.Time{})
	}
}

// performBroker does what a request asks by the broker.
func performBroker(ctx context.Context, r request, paths []string) (result, error) {
	for {
		broker, err := dialBroker(ctx, paths)
		if err != nil {
			return result{}, err
		}
		basic := oldBrokers.contains(broker.path)
		release := guard(ctx, broker.conn)
		made, err := broker.exchange(r, basic)
		release()
		if err == nil && ctx.Err() == nil {
			return made, nil
		}
		made.close()
		_ = broker.conn.Close()
		if ctxErr := contextError(ctx); ctxErr != nil {
			return result{}, broker.preferReason(err, ctxErr)
		}
		refused := RefusalOf(err)
		if refused == nil || basic || refused.Code != Reset || !strings.Contains(refused.Detail, violation) {
			return result{}, err
		}
		// A broker that does not know requests with names. Nothing was done.
		oldBrokers.add(broker.path)
	}
}

// preferReason returns the refusal that arrived before a deadline, or else the error of the context.
func (b *brokerConn) preferReason(err, ctxErr error) error {
	switch {
	case errors.Is(ctxErr, context.Canceled):
		return ctxErr
	case RefusalOf(err) != nil:
		return err
	}
	return &timeoutError{"the broker at " + b.path + " does not reply"}
}

// close ends what was made for a request that its caller has given up.
func (r *result) close() {
	switch {
	case r.conn != nil:
		_ = r.conn.Abort()
	case r.listener != nil:
		_ = r.listener.Close()
	case r.lease != nil:
		_ = r.lease.Close()
	}
	*r = result{}
}

// exchange sends a request and returns what became of it. A basic one has only messages that a broker of every
// version knows.
func (b *brokerConn) exchange(r request, basic bool) (result, error) {
	if r.kind == kindRegister {
		if err := b.send(encodeRegister(r.address.ServiceID, r.name, r.purpose)); err != nil {
			return result{}, err
		}
		return b.answered(r)
	}
	if r.connectedSuspend {
		if err := b.send(encodeSetOption(optionConnectedSuspend, 1)); err != nil {
			return result{}, err
		}
	}
	flags := uint16(0)
	if r.dryRun {
		flags |= flagDryRun
	}
	if basic {
		if err := b.lookUp(&r.address); err != nil {
			return result{}, err
		}
	} else {
		flags |= flagExplain
		if r.action != "" || r.detail != "" {
			if err := b.send(encodeDescribe(r.action, r.detail)); err != nil {
				return result{}, err
			}
		}
	}
	kind, number := r.kind, r.backlog
	if kind == kindConnect {
		number = milliseconds(r.timeout)
	}
	if r.address.hasNames() {
		kind += kindConnectNamed - kindConnect
		if r.kind == kindListen {
			kind = kindListenNamed
		}
	}
	if err := b.send(encodeRequest(kind, flags, number, ownTransports, r.address)); err != nil {
		return result{}, err
	}
	return b.answered(r)
}

func milliseconds(timeout time.Duration) uint32 {
	switch ms := timeout.Milliseconds(); {
	case ms < 1:
		return 1
	case ms > maxTimeout:
		return maxTimeout
	default:
		return uint32(ms)
	}
}

// lookUp replaces the names of an address by ids.
func (b *brokerConn) lookUp(address *Address) error {
	one := func(what uint32, name *string, id *GUID) error {
		if *name == "" {
			return nil
		}
		if err := b.send(encodeLookup(what, *name)); err != nil {
			return err
		}
		answer, err := b.receive()
		if err != nil {
			return err
		}
		defer answer.close()
		switch answer.kind {
		case kindFound:
			*name, *id = "", answer.guid
			return nil
		case kindRefused, kindReset:
			return newRefused(answer.code, answer.text)
		}
		return b.unexpected(answer)
	}
	if err := one(lookupPartition, &address.Partition, &address.VMID); err != nil {
		return err
	}
	return one(lookupService, &address.Service, &address.ServiceID)
}

func (b *brokerConn) unexpected(answer reply) error {
	answer.close()
	return &ProtocolError{Path: b.path, What: "the reply does not match the request"}
}

// answered receives the answer to a request.
func (b *brokerConn) answered(r request) (result, error) {
	answer, err := b.receive()
	if err != nil {
		return result{}, err
	}
	switch {
	case answer.kind == kindRefused || answer.kind == kindReset:
		answer.close()
		return result{}, newRefused(answer.code, answer.text)
	case answer.kind == kindExplained && r.dryRun:
		answer.close()
		_ = b.conn.Close()
		return result{explanation: parseExplanation(answer.code, answer.text)}, nil
	case answer.kind == kindExplained && r.kind != kindRegister && answer.code != 0:
		answer.close()
		return result{}, parseExplanation(answer.code, answer.text).Refusal
	case answer.kind == kindConnected && r.kind == kindConnect && !r.dryRun:
		data, err := answer.take(1)
		if err != nil {
			return result{}, b.fault(err)
		}
		conn, err := newBrokerConnection(answer.brokerMessage, data[0], b.conn)
		return result{conn: conn}, b.fault(err)
	case answer.kind == kindListening && r.kind == kindListen && !r.address.hasNames() && !r.dryRun:
		return b.listener(answer, r.address.ids())
	case answer.kind == kindBound && r.kind == kindListen && r.address.hasNames() && !r.dryRun:
		return b.listener(answer, answer.address)
	case answer.kind == kindRegistered && r.kind == kindRegister:
		answer.close()
		return result{lease: &Lease{closer: b.conn, wait: b.waitReset}}, nil
	}
	return result{}, b.unexpected(answer)
}

func (b *brokerConn) listener(answer reply, local HvsockAddr) (result, error) {
	if _, err := answer.take(0); err != nil {
		return result{}, b.fault(err)
	}
	return result{listener: &HvsockListener{
		acceptor: &brokerListener{broker: b},
		local:    local,
		backlog:  int(answer.backlog),
	}}, nil
}

// waitReset waits until the broker ends a lease.
func (b *brokerConn) waitReset() error {
	for {
		message, err := b.receive()
		if err != nil {
			return err
		}
		message.close()
		if message.kind == kindReset || message.kind == kindRefused {
			return &ResetError{Reason: newRefused(message.code, message.text)}
		}
	}
}

// brokerListener receives connections on an endpoint connection.
type brokerListener struct {
	broker *brokerConn
	closed atomic.Bool
	mutex  sync.Mutex
	// reset is why the listener has ended.
	reset error
}

func (l *brokerListener) accept() (*HvsockConn, error) {
	for {
		if l.closed.Load() {
			return nil, net.ErrClosed
		}
		if err := l.ended(nil); err != nil {
			return nil, err
		}
		conn, err := l.next()
		if l.closed.Load() {
			if conn != nil {
				_ = conn.Abort()
			}
			return nil, net.ErrClosed
		}
		if conn != nil || err != nil {
			return conn, err
		}
	}
}

// ended returns why the listener has ended, which is err if it is the first reason.
func (l *brokerListener) ended(err error) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.reset == nil {
		l.reset = err
	}
	return l.reset
}

// next receives one message. It returns nothing for one that is no connection.
func (l *brokerListener) next() (*HvsockConn, error) {
	message, err := l.broker.receive()
	var limit descriptorLimitError
	if errors.As(err, &limit) && message.kind == kindIncoming {
		// The connection is lost, and its place in the backlog is free.
		_ = l.broker.send(encodeAccepted(message.connection))
		return nil, err
	}
	var reset *ResetError
	var fault *ProtocolError
	switch {
	case errors.As(err, &reset), errors.As(err, &fault):
		return nil, l.ended(err)
	case err != nil:
		return nil, err
	}
	switch message.kind {
	case kindIncoming:
		return l.incoming(message)
	case kindReset, kindRefused:
		message.close()
		return nil, l.ended(&ResetError{Reason: newRefused(message.code, message.text)})
	case kindSuspended, kindEnded:
		message.close()
		return nil, nil
	}
	return nil, l.ended(l.broker.unexpected(message))
}

func (l *brokerListener) incoming(message reply) (*HvsockConn, error) {
	descriptors, err := message.take(2)
	if err != nil {
		return nil, l.endedByFault(err)
	}
	if err := l.broker.send(encodeAccepted(message.connection)); err != nil {
		_ = syscall.Close(descriptors[0])
		_ = syscall.Close(descriptors[1])
		return nil, err
	}
	file := os.NewFile(uintptr(descriptors[1]), "control")
	control, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		_ = syscall.Close(descriptors[0])
		return nil, ofDescriptors(err)
	}
	socket, ok := control.(*net.UnixConn)
	if !ok {
		_ = syscall.Close(descriptors[0])
		_ = control.Close()
		return nil, l.ended(&ProtocolError{Path: l.broker.path, What: "control is not a Unix socket"})
	}
	conn, err := newBrokerConnection(message.brokerMessage, descriptors[0], socket)
	if err != nil {
		_ = control.Close()
		return nil, l.endedByFault(err)
	}
	return conn, nil
}

// endedByFault returns err, with which the listener has ended if it is a violation of the protocol.
func (l *brokerListener) endedByFault(err error) error {
	err = l.broker.fault(err)
	var fault *ProtocolError
	if errors.As(err, &fault) {
		return l.ended(err)
	}
	return err
}

// ofDescriptors returns the error of a duplicate, which is temporary at the limit of descriptors.
func ofDescriptors(err error) error {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return descriptorLimitError{}
	}
	return bare(err)
}

// closeTimeout bounds the wait for the broker at the end of a listener.
const closeTimeout = 500 * time.Millisecond

// Close ends the listener. It waits until the broker has closed its end, so that the address is free again.
func (l *brokerListener) Close() error {
	if l.closed.Swap(true) {
		return net.ErrClosed
	}
	conn := l.broker.conn
	if conn.CloseWrite() == nil {
		_ = conn.SetReadDeadline(time.Now().Add(closeTimeout))
		for {
			// Connections that nobody accepts any more.
			message, err := receiveMessage(conn)
			message.close()
			if err != nil && !errors.As(err, new(descriptorLimitError)) {
				break
			}
		}
	}
	return conn.Close()
}

// Accept receives only.
func (l *brokerListener) SetDeadline(t time.Time) error {
	if l.closed.Load() {
		return net.ErrClosed
	}
	return l.broker.conn.SetReadDeadline(t)
}

// oldBrokers are the endpoints whose brokers do not know requests with names.
var oldBrokers endpointSet

// endpointSet is a bounded set of paths.
type endpointSet struct {
	mutex sync.Mutex
	paths map[string]bool
}

func (s *endpointSet) contains(path string) bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.paths[path]
}

func (s *endpointSet) add(path string) {
	const most = 64
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.paths == nil || len(s.paths) >= most {
		s.paths = make(map[string]bool)
	}
	s.paths[path] = true
}
