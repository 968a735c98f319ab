//go:build linux && !386 && !s390x

package hvsock

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestTheContextIDDistinguishesAGuestFromAHost(t *testing.T) {
	for _, c := range []struct {
		cid          uint32
		known, vmbus bool
		want         machine
	}{
		{42, true, false, machine{machineGuest, 42}},
		{42, true, true, machine{machineGuest, 42}},
		{cidHost, true, false, machine{kind: machineHost}},
		{cidAny, true, true, machine{kind: machineHyperV}},
		{cidAny, true, false, machine{kind: machineNoTransport}},
		{cidLocal, true, false, machine{kind: machineNoTransport}},
		{0, false, true, machine{kind: machineHyperV}},
		{0, false, false, machine{kind: machineGuest}},
	} {
		if got := machineOf(c.cid, c.known, c.vmbus); got != c.want {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

func TestAnAddressInAGuestMeansTheHostOrThisMachine(t *testing.T) {
	guest, hyperV := machine{machineGuest, 42}, machine{kind: machineHyperV}
	host, none := machine{kind: machineHost}, machine{kind: machineNoTransport}
	unknown := mustGUID("0b2f1f0e-0000-4000-8000-000000000001")
	for _, c := range []struct {
		machine machine
		kind    byte
		vm      GUID
		cid     uint32
		refused Code
	}{
		{guest, kindConnect, guidParent, cidHost, 0},
		{guest, kindConnect, guidZero, cidHost, 0},
		{hyperV, kindConnect, guidParent, cidHost, 0},
		{guest, kindConnect, guidLoopback, cidLocal, 0},
		{host, kindConnect, guidLoopback, cidLocal, 0},
		{none, kindConnect, guidLoopback, cidLocal, 0},
		{guest, kindConnect, guidChildren, 0, AddressNotAvailable},
		{guest, kindConnect, guidBroadcast, 0, AddressNotAvailable},
		{guest, kindConnect, guidSiloHost, 0, AddressNotAvailable},
		{guest, kindConnect, unknown, 0, NotReachable},
		{host, kindConnect, guidParent, 0, NotSupported},
		{host, kindConnect, guidZero, 0, AddressNotAvailable},
		{none, kindConnect, guidParent, 0, NotReachable},
		{guest, kindListen, guidZero, cidAny, 0},
		{host, kindListen, guidZero, cidAny, 0},
		{guest, kindListen, guidParent, cidAny, 0},
		{guest, kindListen, guidLoopback, cidLocal, 0},
		{host, kindListen, guidParent, 0, NotSupported},
		{guest, kindListen, guidChildren, 0, NotReachable},
		{guest, kindListen, guidBroadcast, 0, AddressNotAvailable},
		{guest, kindListen, unknown, 0, NotReachable},
	} {
		target, err := c.machine.resolve(c.kind, HvsockAddr{VMID: c.vm, ServiceID: VsockServiceID(2761)})
		if c.refused != 0 {
			if !errors.Is(err, c.refused) {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil || target.cid != c.cid || target.port != 2761 {
			t.Errorf("%+v: %+v %v", c, target, err)
		}
	}
}

func TestAListenerForTheHostAcceptsTheHostOnly(t *testing.T) {
	guest := machine{machineGuest, 42}
	target, err := guest.resolve(kindListen, HvsockAddr{VMID: guidParent, ServiceID: VsockServiceID(22)})
	if err != nil {
		t.Fatal(err)
	}
	for cid, want := range map[uint32]struct {
		vm       GUID
		name     string
		accepted bool
	}{
		cidHost: {guidParent, "parent", true}, cidLocal: {guidLoopback, "loopback", false},
		42: {guidLoopback, "loopback", false}, 43: {guidZero, "cid 43", false},
	} {
		addr, name := guest.peer(cid, 1)
		if addr.VMID != want.vm || name != want.name || target.accepts(addr) != want.accepted {
			t.Errorf("cid %d: %v %s", cid, addr, name)
		}
	}
}

func TestAServiceHasItsPortOrItsAliasButNotOnHyperV(t *testing.T) {
	off := mustGUID("0b2f1f0e-0000-4000-8000-000000000001")
	alias, _ := off.VsockAlias()
	guest, hyperV := machine{machineGuest, 42}, machine{kind: machineHyperV}
	addr := HvsockAddr{VMID: guidParent, ServiceID: off}
	if target, err := guest.resolve(kindConnect, addr); err != nil || target.port != alias {
		t.Errorf("%+v %v", target, err)
	}
	if _, err := hyperV.resolve(kindConnect, addr); !errors.Is(err, ServiceNotMappable) {
		t.Errorf("%v", err)
	}
	for _, none := range []GUID{guidZero, VsockServiceID(portAny)} {
		if _, err := guest.resolve(kindConnect, HvsockAddr{VMID: guidParent, ServiceID: none}); !errors.Is(err, AddressNotAvailable) {
			t.Errorf("%v: %v", none, err)
		}
	}
}

// fakeHost answers the questions of a guest with these frames.
func fakeHost(t *testing.T, answers ...[]byte) {
	t.Helper()
	original := dialHostBroker
	t.Cleanup(func() { dialHostBroker = original })
	dialHostBroker = func(context.Context) (hostConn, error) {
		own, host := net.Pipe()
		go func() {
			defer host.Close()
			for _, answer := range answers {
				if _, err := readFrame(host); err != nil {
					return
				}
				// In pieces, since a stream has no boundaries.
				for frame := append(appendNumber(nil, uint32(len(answer))), answer...); len(frame) > 0; frame = frame[1:] {
					if _, err := host.Write(frame[:1]); err != nil {
						return
					}
				}
			}
			_, _ = io.Copy(io.Discard, host)
		}()
		return own, nil
	}
}

func TestTheHostResolvesTheNamesOfAGuest(t *testing.T) {
	guest := machine{machineGuest, 42}
	id := VsockServiceID(5)
	array := id.ToWindowsArray()
	named := Address{VMID: guidParent, Service: "Demo"}
	fakeHost(t, append(header(hostFound, 0), array[:]...))
	if ids, err := resolveByHost(background(t), guest, named); err != nil || ids.ServiceID != id {
		t.Errorf("%v %v", ids, err)
	}
	fakeHost(t, refusal(hostRefused, uint32(Unregistered), ""))
	if _, err := resolveByHost(background(t), guest, named); !errors.Is(err, Unregistered) {
		t.Errorf("%v", err)
	}
	for _, answer := range [][]byte{
		header(hostFound, 0), []byte("SSH-2.0-OpenSSH_9.9"), {1, 0xff, 0, 0}, {2, hostFound, 0, 0}, {1},
		refusal(hostRefused, 1, "")[:9], refusal(hostRefused, 2, "\xff"), make([]byte, maxMessage+1),
	} {
		fakeHost(t, answer)
		_, err := resolveByHost(background(t), guest, named)
		var none *NoRegistryError
		if !errors.As(err, &none) || !strings.Contains(err.Error(), "no broker of hvsock") {
			t.Errorf("%x: %v", answer[:1], err)
		}
	}
	// A silent host is given up.
	fakeHost(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := resolveByHost(ctx, guest, named); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if _, err := resolveByHost(background(t), guest, Address{Partition: "web"}); !strings.Contains(err.Error(), "web") {
		t.Errorf("%v", err)
	}
}

func TestTheHostSaysWhyItRefusedAGuest(t *testing.T) {
	guest := machine{machineGuest, 42}
	target, err := guest.resolve(kindConnect, HvsockAddr{VMID: guidParent, ServiceID: VsockServiceID(5)})
	if err != nil {
		t.Fatal(err)
	}
	refused := target.connectError(guest, syscall.ECONNRESET)
	if !errors.Is(refused, NoListener) {
		t.Fatalf("%v", refused)
	}
	explained := func(code Code, text string) []byte {
		bytes := binary.LittleEndian.AppendUint64(header(hostExplained, 0), 1)
		return append(appendNumber(appendNumber(bytes, uint32(code)), 0), text...)
	}
	fakeHost(t, explained(Denied, "connect = []\nfix\tallow_user\tadd the user\n"))
	err = whyByHost(background(t), guest, target, refused)
	if !errors.Is(err, Denied) || RefusalOf(err).Fix != "add the user" {
		t.Errorf("%v", err)
	}
	fakeHost(t, explained(0, ""))
	if err := whyByHost(background(t), guest, target, refused); !strings.HasSuffix(err.Error(), "try again") {
		t.Errorf("%v", err)
	}
	fakeHost(t, explained(Denied, "")[:10])
	if err := whyByHost(background(t), guest, target, refused); err != refused {
		t.Errorf("%v", err)
	}
}

// Runs where the kernel has vsock loopback. Other tests do the same in a real virtual machine.
func TestTheKernelsSocketsCarryAConnectionWithinThisMachine(t *testing.T) {
	t.Setenv("HVSOCK_ENDPOINT", "vsock")
	id, err := NewGUID()
	if err != nil {
		t.Fatal(err)
	}
	addr := HvsockAddr{VMID: guidLoopback, ServiceID: id}
	listener, err := ListenHvsock(&addr)
	if errors.Is(err, AddressNotAvailable) || errors.Is(err, NotSupported) {
		t.Skip("not on this machine: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if _, err := ListenHvsock(&addr); !errors.Is(err, AddressInUse) {
		t.Errorf("%v", err)
	}
	_ = listener.SetDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := listener.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
	_ = listener.SetDeadline(time.Now().Add(limit))
	conn, err := DialHvsock(background(t), &addr)
	if errors.Is(err, NotReachable) {
		t.Skip("not on this machine: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	accepted, err := listener.AcceptHvsock()
	if err != nil {
		t.Fatal(err)
	}
	go echo(accepted)
	if accepted.Peer().Partition != "loopback" {
		t.Errorf("%+v", accepted.Peer())
	}
	_ = conn.SetDeadline(time.Now().Add(limit))
	data := pattern(300000)
	go func() {
		_, _ = conn.Write(data)
		_ = conn.CloseWrite()
	}()
	if got, err := io.ReadAll(conn); err != nil || string(got) != string(data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	nobody := HvsockAddr{VMID: guidLoopback, ServiceID: VsockServiceID(1<<31 - 1)}
	if _, err := DialHvsock(background(t), &nobody); !errors.Is(err, NoListener) {
		t.Errorf("%v", err)
	}
}
