package hvsock

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// limit bounds every wait of a test.
const limit = 20 * time.Second

// fakeBroker is an endpoint whose answers a test writes.
type fakeBroker struct {
	path     string
	listener *net.UnixListener
}

// fakeConn is an endpoint connection at the broker's end.
type fakeConn struct{ *net.UnixConn }

// newFakeBroker serves each endpoint connection by serve until the test ends.
func newFakeBroker(t *testing.T, serve func(fakeConn)) *fakeBroker {
	t.Helper()
	folder, err := os.MkdirTemp("/tmp", "hv-")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "endpoint")
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(limit))
			serve(fakeConn{conn})
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
		os.RemoveAll(folder)
	})
	t.Setenv("HVSOCK_ENDPOINT", path)
	return &fakeBroker{path: path, listener: listener}
}

// receive returns the next message of the client; nil at its end.
func (c fakeConn) receive() []byte {
	bytes := make([]byte, maxMessage)
	n, err := c.Read(bytes)
	if err != nil {
		return nil
	}
	return bytes[:n]
}

func (c fakeConn) send(message []byte, descriptors ...int) {
	_, _, _ = c.WriteMsgUnix(message, syscall.UnixRights(descriptors...), nil)
}

func refusal(kind byte, code uint32, detail string) []byte {
	return append(appendNumber(appendNumber(header(kind, 0), code), 0), detail...)
}

func connected(transport uint32) []byte {
	bytes := appendNumber(header(kindConnected, 0), transport)
	bytes = binary.LittleEndian.AppendUint64(bytes, 7)
	local, peer := HvsockAddr{VMID: guidLoopback}, HvsockAddr{VMID: guidParent, ServiceID: VsockServiceID(1)}
	return peer.appendTo(local.appendTo(bytes))
}

func incoming(transport uint32) []byte {
	bytes := connected(transport)
	bytes[1] = kindIncoming
	return append(appendNumber(appendNumber(appendNumber(bytes, 1), 2), 3), "web"...)
}

func listening() []byte {
	return binary.LittleEndian.AppendUint64(appendNumber(header(kindListening, 0), 8), 3)
}

// socketPair returns both ends of a pair of sockets; the test closes what is left of them.
func socketPair(t *testing.T, kind int) (own, other int) {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, kind|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return pair[0], pair[1]
}

func closeAll(descriptors ...int) {
	for _, descriptor := range descriptors {
		_ = syscall.Close(descriptor)
	}
}

const anyService = "hvsock://parent/1"

func TestADialEndsAtOnceWhenItsContextIsCancelled(t *testing.T) {
	asked, closed := make(chan struct{}), make(chan struct{})
	newFakeBroker(t, func(conn fakeConn) {
		conn.receive()
		close(asked)
		// The end of the client's endpoint connection gives the request up.
		if conn.receive() == nil {
			close(closed)
		}
		conn.Close()
	})
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		_, err := Dial(ctx, anyService)
		failed <- err
	}()
	<-asked
	cancel()
	select {
	case err := <-failed:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	case <-time.After(limit):
		t.Fatal("it goes on")
	}
	<-closed
}

func TestADeadlineOfADialIsATimeout(t *testing.T) {
	newFakeBroker(t, func(conn fakeConn) {
		for conn.receive() != nil {
		}
		conn.Close()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	_, byContext := Dial(ctx, anyService)
	_, byTimeout := DialTimeout(anyService, 30*time.Millisecond)
	dialer := HvsockDialer{Deadline: time.Now().Add(-time.Second)}
	_, before := dialer.Dial(context.Background(), &HvsockAddr{})
	for _, err := range []error{byContext, byTimeout, before} {
		var netErr net.Error
		if !errors.As(err, &netErr) || !netErr.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) ||
			!errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	}
}

func TestADialerTriesAgainAsOftenAsItIsTold(t *testing.T) {
	attempts := make(chan struct{}, 10)
	newFakeBroker(t, func(conn fakeConn) {
		conn.receive()
		attempts <- struct{}{}
		conn.send(refusal(kindRefused, uint32(NoListener), ""))
		conn.Close()
	})
	dialer := HvsockDialer{Retries: 2, RetryWait: time.Millisecond}
	_, err := dialer.DialContext(context.Background(), "hvsock", anyService)
	if !errors.Is(err, NoListener) || !errors.Is(err, syscall.ECONNREFUSED) || len(attempts) != 3 {
		t.Errorf("%v after %d attempts", err, len(attempts))
	}
	_, err = dialer.DialContext(context.Background(), "tcp", anyService)
	var unknown net.UnknownNetworkError
	if !errors.As(err, &unknown) || len(attempts) != 3 {
		t.Errorf("%v after %d attempts", err, len(attempts))
	}
}

func TestADeniedDialIsNotTriedAgain(t *testing.T) {
	attempts := make(chan struct{}, 10)
	newFakeBroker(t, func(conn fakeConn) {
		conn.receive()
		attempts <- struct{}{}
		conn.send(refusal(kindExplained, uint32(Denied),
			"connect = [\"root\"]\nfix\tallow_user\tadd the user\tservice=Demo\nfail\tmay it?\tno\tcheck=may_connect\n"))
		conn.Close()
	})
	dialer := HvsockDialer{Retries: 5}
	_, err := dialer.Dial(context.Background(), &HvsockAddr{})
	refused := RefusalOf(err)
	if refused == nil || len(attempts) != 1 || refused.Fix != "add the user" || len(refused.Explanation.Checks) != 1 {
		t.Fatalf("%v %+v after %d attempts", err, refused, len(attempts))
	}
	want := "dial hvsock hvsock://wildcard/00000000-0000-0000-0000-000000000000: " +
		"access is denied by connect = [\"root\"]; add the user"
	if err.Error() != want || !errors.Is(err, os.ErrPermission) {
		t.Errorf("%v", err)
	}
}

func TestAnOlderBrokerIsAskedByLookUps(t *testing.T) {
	asked := make(chan byte, 20)
	fake := newFakeBroker(t, func(conn fakeConn) {
		defer conn.Close()
		for {
			message := conn.receive()
			if message == nil {
				return
			}
			asked <- message[1]
			switch message[1] {
			case kindLookup:
				id := VsockServiceID(5).ToWindowsArray()
				conn.send(append(header(kindFound, 0), id[:]...))
			case kindConnect:
				if message[2] != 0 {
					conn.send(refusal(kindRefused, uint32(Reset), "the client violated the endpoint protocol: flags"))
					return
				}
				conn.send(refusal(kindRefused, uint32(Unregistered), ""))
			default:
				conn.send(refusal(kindRefused, uint32(Reset), "the client violated the endpoint protocol: 0x08"))
				return
			}
		}
	})
	for _, want := range [][]byte{
		{kindConnectNamed, kindLookup, kindLookup, kindConnect},
		{kindLookup, kindLookup, kindConnect},
	} {
		_, err := Dial(context.Background(), Join("web", "Demo"))
		if !errors.Is(err, Unregistered) {
			t.Errorf("%v", err)
		}
		for _, kind := range want {
			if got := <-asked; got != kind {
				t.Errorf("0x%02x instead of 0x%02x", got, kind)
			}
		}
	}
	if !oldBrokers.contains(fake.path) {
		t.Error("it is not remembered")
	}
}

func TestAResetThatIsNoViolationIsNotRepeated(t *testing.T) {
	attempts := make(chan struct{}, 10)
	newFakeBroker(t, func(conn fakeConn) {
		conn.receive()
		attempts <- struct{}{}
		conn.send(refusal(kindRefused, uint32(Reset), "the peer closed the connection"))
		conn.Close()
	})
	_, err := Dial(context.Background(), Join("web", "Demo"))
	if !errors.Is(err, syscall.ECONNRESET) || len(attempts) != 1 {
		t.Errorf("%v after %d attempts", err, len(attempts))
	}
}

// Whatever a broker answers, a dial fails with an error and keeps no descriptor.
func TestAViolationByTheBrokerIsAnErrorAndLeaksNothing(t *testing.T) {
	a, b := socketPair(t, syscall.SOCK_STREAM)
	defer closeAll(a, b)
	answers := []struct {
		name        string
		message     []byte
		descriptors []int
	}{
		{"no descriptor", connected(transportDescriptor), nil},
		{"two descriptors", connected(transportDescriptor), []int{a, b}},
		{"eight descriptors", connected(transportDescriptor), []int{a, b, a, b, a, b, a, b}},
		{"a ring", connected(transportRing), []int{a}},
		{"three descriptors of a ring", connected(transportRing), []int{a, b, a}},
		{"an unknown transport", connected(32), []int{a}},
		{"another answer", listening(), nil},
		{"another answer with a descriptor", listening(), []int{a}},
		{"a truncated message", connected(transportDescriptor)[:79], []int{a}},
		{"a message that is too long", append(connected(transportDescriptor), 0), []int{a}},
		{"another version", append([]byte{9}, connected(transportDescriptor)[1:]...), []int{a}},
		{"an unknown message", []byte{1, 0xff, 0, 0}, nil},
		{"one byte", []byte{1}, nil},
		{"text that is not UTF-8", refusal(kindRefused, 2, "\xff\xfe"), nil},
		{"a message of more than 4096 bytes", refusal(kindRefused, 2, strings.Repeat("x", 8000)), nil},
		{"an explanation without a refusal", refusal(kindExplained, 0, ""), nil},
	}
	next := make(chan int, 1)
	newFakeBroker(t, func(conn fakeConn) {
		conn.receive()
		answer := answers[<-next]
		conn.send(answer.message, answer.descriptors...)
		conn.receive()
		conn.Close()
	})
	before := openDescriptors(t)
	for i, answer := range answers {
		next <- i
		conn, err := Dial(context.Background(), anyService)
		var fault *ProtocolError
		if conn != nil || !errors.As(err, &fault) {
			t.Errorf("%s: %v", answer.name, err)
		}
	}
	waitFor(t, "descriptors are left", func() bool { return openDescriptors(t) <= before })
}

func TestABrokerThatClosesWithoutAnAnswerIsGone(t *testing.T) {
	newFakeBroker(t, func(conn fakeConn) { conn.Close() })
	_, err := Dial(context.Background(), anyService)
	if !errors.Is(err, syscall.ECONNRESET) || !strings.Contains(err.Error(), "the broker went away") {
		t.Errorf("%v", err)
	}
}

func TestWithoutABrokerTheErrorNamesThePathsAndTheNextStep(t *testing.T) {
	folder := t.TempDir()
	t.Setenv("HVSOCK_ENDPOINT", "")
	t.Setenv("HVSOCK_DIR", folder)
	_, err := Dial(context.Background(), anyService)
	var none *NoBrokerError
	if !errors.As(err, &none) || len(none.Tried) != 1 || !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%v", err)
	}
	if text := err.Error(); !strings.Contains(text, folder+"/endpoint; start one") {
		t.Error(text)
	}
	// A socket on which nobody listens any more is no broker either.
	fake := newFakeBroker(t, func(fakeConn) {})
	fake.listener.SetUnlinkOnClose(false)
	fake.listener.Close()
	_, err = Dial(context.Background(), anyService)
	if !errors.As(err, &none) {
		t.Errorf("%v", err)
	}
}

// established returns a connection with the broker's ends of control and of data.
func established(t *testing.T, transport uint32) (conn *HvsockConn, control fakeConn, data int) {
	t.Helper()
	own, other := socketPair(t, syscall.SOCK_STREAM)
	controls := make(chan fakeConn, 1)
	newFakeBroker(t, func(conn fakeConn) {
		conn.receive()
		conn.send(connected(transport), other)
		controls <- conn
	})
	conn, err := Dial(context.Background(), anyService)
	closeAll(other)
	if err != nil {
		t.Fatal(err)
	}
	control = <-controls
	t.Cleanup(func() { control.Close() })
	_ = conn.SetDeadline(time.Now().Add(limit))
	return conn, control, own
}

func TestTheEndOfDataIsCleanOnlyAfterTheBrokersWord(t *testing.T) {
	operator := refusal(kindReset, uint32(Reset), "an operator closed the connection")
	cases := []struct {
		name     string
		messages [][]byte
		close    bool
		clean    bool
		words    string
	}{
		{"SHUTDOWN", [][]byte{header(kindEnded, 0)}, false, true, ""},
		{"SHUTDOWN and RESET", [][]byte{header(kindEnded, 0), operator}, true, true, ""},
		{"RESET", [][]byte{operator}, true, false, "an operator closed the connection"},
		{"the end of control", nil, true, false, "the broker went away"},
		{"an unknown message", [][]byte{{1, 0xee, 0, 0}}, false, false, "unknown message"},
		{"another message", [][]byte{listening()}, false, false, "unexpected message"},
		{"SUSPENDED and SHUTDOWN", [][]byte{appendNumber(header(kindSuspended, 0), 1), header(kindEnded, 0)}, false,
			true, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			conn, control, data := established(t, transportDescriptor)
			defer conn.Close()
			_, _ = syscall.Write(data, []byte("abc"))
			for _, message := range c.messages {
				control.send(message)
			}
			if c.close {
				control.Close()
			}
			closeAll(data)
			for again := 0; again < 2; again++ {
				got, err := io.ReadAll(conn)
				if again == 0 && string(got) != "abc" {
					t.Errorf("%q", got)
				}
				if (err == nil) != c.clean || err != nil && !strings.Contains(err.Error(), c.words) {
					t.Errorf("%v", err)
				}
			}
		})
	}
}

func TestAPeerThatClosesForGoodAfterItsEndIsNoReset(t *testing.T) {
	conn, control, data := established(t, transportDescriptor)
	defer conn.Close()
	_, _ = syscall.Write(data, []byte("abc"))
	control.send(header(kindEnded, 0))
	closeAll(data)
	control.Close()
	if got, err := io.ReadAll(conn); string(got) != "abc" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v", err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
}

func TestAResetAfterThePeersEndIsTheErrorOfTheOwnEnd(t *testing.T) {
	conn, control, data := established(t, transportDescriptor)
	defer conn.Close()
	control.send(header(kindEnded, 0))
	control.send(refusal(kindReset, uint32(PartitionOff), ""))
	closeAll(data)
	control.Close()
	if err := conn.CloseWrite(); !errors.Is(err, PartitionOff) {
		t.Errorf("%v", err)
	}
}

func TestAReaderWaitsForTheMeaningOfTheEndUntilItsDeadline(t *testing.T) {
	conn, control, data := established(t, transportDescriptor)
	defer conn.Close()
	closeAll(data)
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(limit))
	control.send(header(kindEnded, 0))
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%v", err)
	}
	// What is known stays known, whatever the deadline.
	_ = conn.SetReadDeadline(time.Time{})
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%v", err)
	}
}

// A writer that receives the reason must wake a reader that waits for it.
func TestManyGoroutinesLearnTheReasonFromOneMessage(t *testing.T) {
	conn, control, data := established(t, transportDescriptor)
	defer conn.Close()
	closeAll(data)
	failed := make(chan error, 8)
	for i := 0; i < cap(failed); i++ {
		write := i%2 == 0
		go func() {
			var err error
			for err == nil {
				if write {
					_, err = conn.Write([]byte("x"))
					if errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
						// The reason has not arrived yet.
						err = nil
						runtime.Gosched()
					}
				} else {
					_, err = conn.Read(make([]byte, 1))
				}
			}
			failed <- err
		}()
	}
	control.send(refusal(kindReset, uint32(PartitionOff), ""))
	for i := 0; i < cap(failed); i++ {
		select {
		case err := <-failed:
			if !errors.Is(err, PartitionOff) || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v", err)
			}
		case <-time.After(limit):
			t.Fatal("a goroutine waits for ever")
		}
	}
}

func TestADirectConnectionAsksWhatTheEndMeans(t *testing.T) {
	conn, control, data := established(t, transportDirect)
	defer conn.Close()
	closeAll(data)
	asked := make(chan []byte, 1)
	go func() {
		asked <- control.receive()
		control.send(header(kindEnded, 0))
	}()
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%v", err)
	}
	if message := <-asked; string(message) != string(encodeSetOption(optionConfirmEnd, 1)) {
		t.Errorf("%x", message)
	}
}

func TestShutdownIsAnnouncedBeforeTheEndAndBeforeClose(t *testing.T) {
	for _, end := range []func(*HvsockConn) error{(*HvsockConn).CloseWrite, (*HvsockConn).Close} {
		conn, control, data := established(t, transportDescriptor)
		if err := end(conn); err != nil {
			t.Fatal(err)
		}
		if n, err := syscall.Read(data, make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("%d %v", n, err)
		}
		if message := control.receive(); string(message) != string(header(kindShutdown, 0)) {
			t.Errorf("%x", message)
		}
		conn.Close()
		if message := control.receive(); message != nil {
			t.Errorf("a second message %x", message)
		}
		closeAll(data)
	}
	conn, control, data := established(t, transportDescriptor)
	defer closeAll(data)
	if err := conn.Abort(); err != nil {
		t.Fatal(err)
	}
	if message := control.receive(); message != nil {
		t.Errorf("an abort announces %x", message)
	}
}

func TestAListenerSurvivesWhatIsNoConnectionAndEndsWithItsReason(t *testing.T) {
	controls := make(chan fakeConn, 1)
	newFakeBroker(t, func(conn fakeConn) {
		conn.receive()
		conn.send(listening())
		controls <- conn
	})
	listener, err := Listen(context.Background(), "hvsock://any/1")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	control := <-controls
	defer control.Close()
	if listener.Backlog() != 8 || listener.Addr().String() != "hvsock://wildcard/1" {
		t.Errorf("%d %v", listener.Backlog(), listener.Addr())
	}
	_ = listener.SetDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := listener.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
	_ = listener.SetDeadline(time.Now().Add(limit))

	own, data := socketPair(t, syscall.SOCK_STREAM)
	peer, end := socketPair(t, syscall.SOCK_SEQPACKET)
	control.send(appendNumber(header(kindSuspended, 0), 0))
	control.send(incoming(transportDescriptor), data, end)
	closeAll(data, end)
	conn, err := listener.AcceptHvsock()
	if err != nil {
		t.Fatal(err)
	}
	want := Peer{Partition: "web", PID: 1, UID: 2, GID: 3, HasCredentials: true}
	if conn.Peer() != want || conn.Number() != 7 {
		t.Errorf("%+v", conn.Peer())
	}
	if message := control.receive(); string(message) != string(encodeAccepted(7)) {
		t.Errorf("%x", message)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	conn.Close()
	closeAll(own, peer)

	control.send(refusal(kindReset, uint32(Disabled), "enabled = false"))
	for again := 0; again < 2; again++ {
		_, err = listener.Accept()
		if !errors.Is(err, Disabled) || !strings.Contains(err.Error(), "enabled = false") {
			t.Errorf("%v", err)
		}
	}
}

func TestAtTheLimitOfDescriptorsAnAcceptFailsForAMomentOnly(t *testing.T) {
	controls := make(chan fakeConn, 1)
	newFakeBroker(t, func(conn fakeConn) {
		conn.receive()
		conn.send(listening())
		controls <- conn
	})
	listener, err := Listen(context.Background(), "hvsock://any/1")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	control := <-controls
	defer control.Close()
	_ = listener.SetDeadline(time.Now().Add(limit))
	own, data := socketPair(t, syscall.SOCK_STREAM)
	peer, end := socketPair(t, syscall.SOCK_SEQPACKET)
	defer closeAll(own, data, peer, end)

	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	// The last descriptor is open, so none is free below the limit.
	full := syscall.Rlimit{Cur: 3, Max: before.Max}
	control.send(incoming(transportDescriptor), data, end)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &full); err != nil {
		t.Fatal(err)
	}
	_, err = listener.Accept()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	var temporary interface{ Temporary() bool }
	if !errors.Is(err, syscall.EMFILE) || !errors.As(err, &temporary) || !temporary.Temporary() {
		t.Errorf("%v", err)
	}
	if message := control.receive(); string(message) != string(encodeAccepted(7)) {
		t.Errorf("its place in the backlog stays taken: %x", message)
	}
	control.send(incoming(transportDescriptor), data, end)
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestAViolationOnAListenerEndsIt(t *testing.T) {
	a, b := socketPair(t, syscall.SOCK_STREAM)
	defer closeAll(a, b)
	before := openDescriptors(t)
	for _, bad := range []struct {
		message     []byte
		descriptors []int
	}{
		{incoming(transportDescriptor), []int{a}},
		{incoming(transportDescriptor), []int{a, b, a}},
		{incoming(transportRing), []int{a, b}},
		{connected(transportDescriptor), []int{a}},
		{[]byte{1, 0x77, 0, 0}, nil},
	} {
		bad := bad
		newFakeBroker(t, func(conn fakeConn) {
			conn.receive()
			conn.send(listening())
			conn.send(bad.message, bad.descriptors...)
			conn.receive()
			conn.Close()
		})
		listener, err := Listen(context.Background(), "hvsock://any/1")
		if err != nil {
			t.Fatal(err)
		}
		var fault *ProtocolError
		for again := 0; again < 2; again++ {
			if _, err := listener.Accept(); !errors.As(err, &fault) {
				t.Errorf("%x: %v", bad.message[:2], err)
			}
		}
		listener.Close()
	}
	// Each fake broker has a listening socket until the test ends.
	waitFor(t, "descriptors are left", func() bool { return openDescriptors(t) <= before+5 })
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !holds(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}
