package hvsock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// operator calls the control API of the broker.
func operator(t *testing.T, folder, method, path, body string) {
	t.Helper()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(folder, "control"))
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: limit}
	request, err := http.NewRequest(method, "http://broker"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("content-type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		text, _ := io.ReadAll(response.Body)
		t.Fatalf("%s %s: %s: %s", method, path, response.Status, text)
	}
}

// service registers a service of its own for a test, with further fields as JSON, and returns its id.
func service(t *testing.T, folder, name, fields string) GUID {
	t.Helper()
	id, err := NewGUID()
	if err != nil {
		t.Fatal(err)
	}
	operator(t, folder, "POST", "/v1/services", fmt.Sprintf(`{"name": %q, "id": %q%s}`, name, id, fields))
	t.Cleanup(func() { operator(t, folder, "DELETE", "/v1/services/"+id.String(), "") })
	return id
}

// pair returns both ends of a connection to a service of this process's partition.
func pair(t *testing.T, id GUID) (dialed, accepted *HvsockConn) {
	t.Helper()
	listener, err := ListenHvsock(&HvsockAddr{ServiceID: id})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialed, err = DialHvsock(background(t), &HvsockAddr{VMID: HvsockGUIDLoopback(), ServiceID: id})
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.SetDeadline(time.Now().Add(limit))
	accepted, err = listener.AcceptHvsock()
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range []*HvsockConn{dialed, accepted} {
		conn := conn
		_ = conn.SetDeadline(time.Now().Add(limit))
		t.Cleanup(func() { conn.Close() })
	}
	return dialed, accepted
}

func TestBothEndsSeeTheAddressesAndTheListenerThePeer(t *testing.T) {
	folder := broker(t)
	id := service(t, folder, "Go addresses", "")
	dialed, accepted := pair(t, id)
	if addr := dialed.RemoteAddr().(*HvsockAddr); addr.VMID != HvsockGUIDLoopback() || addr.ServiceID != id {
		t.Errorf("%v", addr)
	}
	if addr := accepted.LocalAddr().(*HvsockAddr); addr.ServiceID != id {
		t.Errorf("%v", addr)
	}
	peer := accepted.Peer()
	if !peer.HasCredentials || int(peer.PID) != os.Getpid() || int(peer.UID) != os.Getuid() || peer.Partition == "" {
		t.Errorf("%+v", peer)
	}
	if dialed.Number() == 0 || dialed.Number() != accepted.Number() {
		t.Errorf("%d and %d", dialed.Number(), accepted.Number())
	}
}

// The transports must not differ in what a program sees.
func TestEachKindOfEndIsToldByEitherTransport(t *testing.T) {
	folder := broker(t)
	for name, fields := range map[string]string{"descriptor": "", "direct": `, "transport": "direct"`} {
		id := service(t, folder, "Go "+name, fields)
		t.Run(name, func(t *testing.T) {
			dialed, accepted := pair(t, id)
			if direct := dialed.stream.(*brokerStream).direct; direct != (name == "direct") {
				t.Fatalf("direct is %v", direct)
			}
			data := pattern(300000)
			go func() {
				_, _ = dialed.Write(data)
				_ = dialed.CloseWrite()
			}()
			got, err := io.ReadAll(accepted)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if _, err := accepted.Write([]byte("after the end")); err != nil {
				t.Error(err)
			}
			accepted.Close()
			if got, err := io.ReadAll(dialed); err != nil || string(got) != "after the end" {
				t.Errorf("%q %v", got, err)
			}

			killed, peer := pair(t, id)
			_, _ = killed.Write([]byte("some"))
			_ = killed.Abort()
			got, err = io.ReadAll(peer)
			var reset *ResetError
			if string(got) != "some" || !errors.As(err, &reset) {
				t.Errorf("%q, then %v", got, err)
			}

			unread, writer := pair(t, id)
			_, _ = writer.Write([]byte("never read"))
			waitReadable(t, unread)
			unread.Close()
			_, err = io.ReadAll(writer)
			// A direct connection may end cleanly for the reader; its writer is told.
			for err == nil || errors.Is(err, syscall.EPIPE) {
				_, err = writer.Write([]byte("x"))
			}
			if !errors.Is(err, syscall.ECONNRESET) || !strings.Contains(err.Error(), "without reading all data") {
				t.Errorf("data that was lost: %v", err)
			}
		})
	}
}

func waitReadable(t *testing.T, conn *HvsockConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Read(func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return err == nil && n > 0
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAPeerThatStopsReadingFailsTheWriter(t *testing.T) {
	folder := broker(t)
	for name, fields := range map[string]string{"descriptor": "", "direct": `, "transport": "direct"`} {
		writer, reader := pair(t, service(t, folder, "Go stop "+name, fields))
		if err := reader.CloseRead(); err != nil {
			t.Fatal(err)
		}
		if _, err := reader.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %v", name, err)
		}
		var err error
		for err == nil {
			_, err = writer.Write(make([]byte, 65536))
		}
		if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAWriterThatWaitsForFreeSpaceLearnsThatItsPeerStoppedReading(t *testing.T) {
	folder := broker(t)
	for name, fields := range map[string]string{"descriptor": "", "direct": `, "transport": "direct"`} {
		writer, reader := pair(t, service(t, folder, "Go full "+name, fields))
		failed := make(chan error, 1)
		full := make(chan struct{})
		go func() {
			// Until nothing more is accepted.
			_ = writer.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			_, _ = writer.Write(make([]byte, 8<<20))
			_ = writer.SetWriteDeadline(time.Now().Add(limit))
			close(full)
			_, err := writer.Write(make([]byte, 8<<20))
			failed <- err
		}()
		<-full
		if err := reader.CloseRead(); err != nil {
			t.Fatal(err)
		}
		if err := <-failed; !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", name, err)
		}
		// What was written is lost, and that is told.
		reader.Close()
		_, err := io.ReadAll(writer)
		for err == nil || errors.Is(err, syscall.EPIPE) {
			_, err = writer.Write([]byte("x"))
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAResetHasTheOperatorsReasonAtBothEnds(t *testing.T) {
	folder := broker(t)
	for name, fields := range map[string]string{"descriptor": "", "direct": `, "transport": "direct"`} {
		dialed, accepted := pair(t, service(t, folder, "Go closed "+name, fields))
		operator(t, folder, "DELETE", fmt.Sprintf("/v1/connections/%d", dialed.Number()), "")
		for _, conn := range []*HvsockConn{dialed, accepted} {
			_, readErr := conn.Read(make([]byte, 1))
			_, writeErr := conn.Write([]byte("x"))
			for _, err := range []error{readErr, writeErr} {
				var reset *ResetError
				if !errors.As(err, &reset) || !errors.Is(err, syscall.ECONNRESET) || !errors.Is(err, Reset) ||
					!strings.Contains(err.Error(), "operator") {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

func TestAServiceThatIsDisabledEndsItsListenerAndConnections(t *testing.T) {
	folder := broker(t)
	id := service(t, folder, "Go disabled", "")
	dialed, _ := pair(t, id)
	listener, err := Listen(background(t), Join("any", "Go disabled"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if addr := listener.Addr().(*HvsockAddr); addr.ServiceID != id {
		t.Errorf("the name was resolved to %v", addr)
	}
	operator(t, folder, "PATCH", "/v1/services/"+id.String(), `{"enabled": false}`)
	_, acceptErr := listener.Accept()
	_, readErr := dialed.Read(make([]byte, 1))
	_, dialErr := Dial(background(t), Join("loopback", id.String()))
	for _, err := range []error{acceptErr, readErr, dialErr} {
		if !errors.Is(err, Disabled) || !errors.Is(err, os.ErrPermission) {
			t.Errorf("%v", err)
		}
	}
	if refused := RefusalOf(dialErr); refused.Fix == "" || len(refused.Explanation.Checks) == 0 {
		t.Errorf("%+v", refused)
	}
}

func TestManyDialsAtOnceLeakNeitherGoroutinesNorDescriptors(t *testing.T) {
	folder := broker(t)
	id := service(t, folder, "Go many", "")
	config := ListenConfig{Backlog: 200}
	descriptors, goroutines := openDescriptors(t), runtime.NumGoroutine()
	listener, err := config.Listen(background(t), Join("any", "Go many"))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Add(1)
	go func() {
		defer serving.Done()
		for {
			conn, err := listener.AcceptHvsock()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				return
			}
			serving.Add(1)
			go func() {
				defer serving.Done()
				echo(conn)
			}()
		}
	}()
	const count = 100
	failed := make(chan error, count)
	for i := 0; i < count; i++ {
		line := fmt.Sprintf("line %d", i)
		go func() {
			failed <- func() error {
				conn, err := DialHvsock(context.Background(), &HvsockAddr{VMID: HvsockGUIDLoopback(), ServiceID: id})
				if err != nil {
					return err
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(limit))
				if _, err := conn.Write([]byte(line)); err != nil {
					return err
				}
				if err := conn.CloseWrite(); err != nil {
					return err
				}
				if got, err := io.ReadAll(conn); err != nil || string(got) != line {
					return fmt.Errorf("%q came back for %q: %v", got, line, err)
				}
				return nil
			}()
		}()
	}
	if err := firstOf(failed, count); err != nil {
		t.Error(err)
	}
	listener.Close()
	serving.Wait()
	waitFor(t, "descriptors are left", func() bool { return openDescriptors(t) <= descriptors })
	waitFor(t, "goroutines are left", func() bool { return runtime.NumGoroutine() <= goroutines })
}

func TestCloseEndsABlockedAcceptReadAndWrite(t *testing.T) {
	folder := broker(t)
	id := service(t, folder, "Go close", "")
	listener, err := Listen(background(t), Join("any", "Go close"))
	if err != nil {
		t.Fatal(err)
	}
	dialed, err := DialHvsock(background(t), &HvsockAddr{VMID: HvsockGUIDLoopback(), ServiceID: id})
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	// Until the end: a connection that nothing refers to is closed by the garbage collector.
	defer accepted.Close()
	failed := make(chan error, 3)
	go func() {
		_, err := listener.Accept()
		failed <- err
	}()
	go func() {
		_, err := dialed.Read(make([]byte, 1))
		failed <- err
	}()
	go func() {
		var err error
		for err == nil {
			_, err = dialed.Write(make([]byte, 1<<20))
		}
		failed <- err
	}()
	// Both block before or after this; either way they end.
	runtime.Gosched()
	listener.Close()
	dialed.Close()
	for i := 0; i < cap(failed); i++ {
		select {
		case err := <-failed:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v", err)
			}
		case <-time.After(limit):
			t.Fatal("a call goes on after Close")
		}
	}
	if _, err := dialed.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
	if err := dialed.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second Close: %v", err)
	}
	// The address is free again.
	again, err := Listen(background(t), Join("any", "Go close"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(background(t), Join("any", "Go close")); !errors.Is(err, AddressInUse) ||
		!errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v", err)
	}
	again.Close()
}

func TestALeaseRegistersAServiceUntilItIsClosed(t *testing.T) {
	broker(t)
	id, err := NewGUID()
	if err != nil {
		t.Fatal(err)
	}
	lease, err := Register(background(t), id, "Go lease", "a test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Register(background(t), id, "Go lease", ""); err == nil {
		t.Error("the same service has two leases")
	}
	listener, err := Listen(background(t), Join("any", "go LEASE"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ended := make(chan error, 1)
	go func() { ended <- lease.Wait() }()
	lease.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
	if _, err := listener.Accept(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v", err)
	}
}

func TestAnExplanationSaysWhatADialWouldDo(t *testing.T) {
	folder := broker(t)
	service(t, folder, "Go explained", "")
	explanation, err := Explain(background(t), Join("loopback", "Go explained"))
	if err != nil {
		t.Fatal(err)
	}
	text := explanation.String()
	if !errors.Is(explanation.Refusal, NoListener) || len(explanation.Checks) == 0 || explanation.Fix == nil ||
		!strings.Contains(text, "refused: no listener") || !strings.Contains(text, "\nhelp: ") {
		t.Errorf("%s", text)
	}
	explanation, err = ExplainListen(background(t), Join("any", "Go explained"))
	if err != nil || explanation.Refusal != nil || !strings.HasPrefix(explanation.String(), "it would succeed") {
		t.Errorf("%v %v", explanation, err)
	}
}

func TestAContainerReachesItsHostAndNotTheUnknown(t *testing.T) {
	folder := broker(t)
	id := service(t, folder, "Go host", "")
	listener, err := ListenHvsock(&HvsockAddr{VMID: HvsockGUIDChildren(), ServiceID: id})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	inside := HvsockDialer{Endpoint: filepath.Join(folder, "containers", "web", "endpoint")}
	conn, err := inside.DialContext(background(t), "hvsock", Join("parent", "Go host"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	accepted, err := listener.AcceptHvsock()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if peer := accepted.Peer(); peer.Partition != "web" || !peer.HasCredentials {
		t.Errorf("%+v", peer)
	}
	_, err = inside.DialContext(background(t), "hvsock", Join("nobody", "Go host"))
	if !errors.Is(err, NotReachable) {
		t.Errorf("%v", err)
	}
	// The host is told that there is no such partition.
	if _, err := Dial(background(t), Join("nobody", "Go host")); !errors.Is(err, PartitionUnknown) {
		t.Errorf("%v", err)
	}
}

func TestADialToAFullBacklogIsRefusedAndMayBeTriedAgain(t *testing.T) {
	folder := broker(t)
	id := service(t, folder, "Go backlog", "")
	config := ListenConfig{Backlog: 1}
	listener, err := config.ListenAddress(background(t), Address{ServiceID: id})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var refused error
	for i := 0; i < 100 && refused == nil; i++ {
		conn, err := DialHvsock(background(t), &HvsockAddr{VMID: HvsockGUIDLoopback(), ServiceID: id})
		if err == nil {
			defer conn.Close()
		}
		refused = err
	}
	if !errors.Is(refused, BacklogFull) || !RefusalOf(refused).Temporary() {
		t.Errorf("%v", refused)
	}
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			if _, err := listener.Accept(); err != nil {
				return
			}
		}
	}()
	dialer := HvsockDialer{Retries: 1000, RetryWait: time.Millisecond}
	conn, err := dialer.Dial(background(t), &HvsockAddr{VMID: HvsockGUIDLoopback(), ServiceID: id})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	listener.Close()
	<-accepting
}
