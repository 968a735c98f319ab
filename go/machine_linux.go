//go:build linux && !386 && !s390x

package hvsock

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// The context ids of linux/vm_sockets.h.
const (
	cidLocal = 1
	cidHost  = 2
	cidAny   = 0xffffffff

	portAny = 0xffffffff
)

// Where the kernel shows its vsock devices.
const (
	vsockDevice = "/dev/vsock"
	vmbus       = "/sys/bus/vmbus"
)

// machineKind is the kind of this machine, as far as it matters to AF_VSOCK.
type machineKind int

const (
	// machineGuest is a virtual machine.
	machineGuest machineKind = iota
	// machineHyperV is one on Hyper-V, whose transport has GUIDs of the vsock template only.
	machineHyperV
	// machineHost is the host of virtual machines.
	machineHost
	// machineNoTransport has no vsock transport.
	machineNoTransport
)

type machine struct {
	kind machineKind
	// cid is the context id of a virtual machine; 0 if it is not known.
	cid uint32
}

func detectMachine() machine {
	cid, err := localCID()
	_, vmbusErr := os.Stat(vmbus)
	return machineOf(cid, err == nil, vmbusErr == nil)
}

// machineOf derives the kind from the local context id, which Hyper-V's transport does not report.
func machineOf(cid uint32, known, hasVMBus bool) machine {
	switch {
	case known && cid == cidHost:
		return machine{kind: machineHost}
	case (!known || cid == cidAny) && hasVMBus:
		return machine{kind: machineHyperV}
	case !known:
		return machine{kind: machineGuest}
	case cid <= cidLocal || cid == cidAny:
		return machine{kind: machineNoTransport}
	}
	return machine{kind: machineGuest, cid: cid}
}

func (m machine) isGuest() bool { return m.kind == machineGuest || m.kind == machineHyperV }

// vsockAvailable returns whether this machine has a host that AF_VSOCK reaches.
func vsockAvailable() bool {
	_, err := os.Stat(vsockDevice)
	return err == nil && detectMachine().isGuest()
}

// vsockTarget is an address as context id and port.
type vsockTarget struct {
	cid  uint32
	port uint32
	// addr is the same as a program sees it.
	addr HvsockAddr
	// accepts says which peers a listener accepts.
	accepts func(HvsockAddr) bool
}

// resolve returns the target of an address without names. This is the address table of a guest without children
// and without known siblings (docs/guest.md).
func (m machine) resolve(kind byte, addr HvsockAddr) (vsockTarget, error) {
	target := vsockTarget{addr: addr, accepts: func(HvsockAddr) bool { return true }}
	connects := kind == kindConnect
	switch addr.VMID {
	case guidLoopback:
		target.cid = cidLocal
	case guidParent, guidZero:
		unsupported := NotSupported
		if addr.VMID == guidZero {
			unsupported = AddressNotAvailable
		}
		if connects || addr.VMID == guidParent {
			if err := m.requireParent(unsupported); err != nil {
				return vsockTarget{}, err
			}
		}
		target.cid = cidHost
		if connects {
			target.addr.VMID = guidParent
			break
		}
		// Not the context id of this machine, which may change when the machine is restored.
		target.cid = cidAny
		if addr.VMID == guidParent {
			target.accepts = func(peer HvsockAddr) bool { return peer.VMID == guidParent }
		}
	case guidChildren:
		if connects {
			return vsockTarget{}, refusedWith(AddressNotAvailable,
				"a connect needs one partition; this address names many", "")
		}
		return vsockTarget{}, refusedWith(NotReachable, "this machine runs no broker, so it has no children", "")
	case guidBroadcast:
		return vsockTarget{}, refusedWith(AddressNotAvailable, "a broadcast address is no address of a service", "")
	case guidSiloHost:
		return vsockTarget{}, refusedWith(AddressNotAvailable, "this process is not in a container of a broker", "")
	default:
		return vsockTarget{}, refusedWith(NotReachable,
			"a partition cannot be reached by its id without a broker; AF_VSOCK has the parent and loopback only", "")
	}
	port, err := m.port(addr)
	target.port = port
	return target, err
}

func (m machine) requireParent(unsupported Code) error {
	switch m.kind {
	case machineHost:
		return refusedWith(unsupported, "this machine is the host of its virtual machines and has no parent", "")
	case machineNoTransport:
		return refusedWith(NotReachable, "no vsock device connects this machine with a host",
			"if it is a virtual machine, give it one (virtio-vsock), or load its driver")
	}
	return nil
}

// port returns the port of a service: the one on the template, else its alias.
func (m machine) port(addr HvsockAddr) (uint32, error) {
	_, onTemplate := addr.ServiceID.VsockPort()
	port, ok := addr.ServiceID.VsockAlias()
	switch {
	case !ok:
		return 0, refusedWith(AddressNotAvailable, "the zero GUID is not a service", "")
	case m.kind == machineHyperV && addr.VMID != guidLoopback && !onTemplate:
		return 0, refusedWith(ServiceNotMappable, fmt.Sprintf(
			"on Hyper-V a Linux guest reaches services by vsock port only, and the GUID %v has none",
			addr.ServiceID), "use one of the form PORT-facb-11e6-bd58-64006a7986d3 on both sides")
	case port == portAny:
		return 0, refusedWith(AddressNotAvailable,
			"vsock port 4294967295 means any port and cannot be used", "")
	}
	return port, nil
}

// peer returns the address and the name of a peer with this context id.
func (m machine) peer(cid, port uint32) (HvsockAddr, string) {
	addr := HvsockAddr{ServiceID: VsockServiceID(port)}
	switch {
	case cid == 0 || cid == cidHost:
		addr.VMID = guidParent
		return addr, "parent"
	case cid == cidLocal || m.cid != 0 && cid == m.cid:
		addr.VMID = guidLoopback
		return addr, "loopback"
	}
	// A context id has no known partition id except on the host.
	return addr, fmt.Sprintf("cid %d", cid)
}

// connectError converts the error number of a connect.
func (t vsockTarget) connectError(m machine, err error) error {
	local := t.cid == cidLocal
	is := func(numbers ...error) bool {
		for _, number := range numbers {
			if errors.Is(err, number) {
				return true
			}
		}
		return false
	}
	switch {
	// The peer sends the same RST packet in all these cases, and it has no field for a reason.
	case local && is(syscall.ECONNRESET, syscall.ECONNREFUSED):
		return refusedWith(NoListener, fmt.Sprintf(
			"no listener on this machine at vsock port %d, or its backlog is full", t.port), "")
	case is(syscall.ECONNRESET, syscall.ECONNREFUSED):
		return refusedWith(NoListener, fmt.Sprintf(
			"the host refused the connection to vsock port %d: no listener, or the service is not registered, or "+
				"not for this machine", t.port), "ask the host, whose log shows which")
	case is(syscall.ETIMEDOUT):
		what := "the host"
		if local {
			what = "this machine"
		}
		text := fmt.Sprintf("timed out: %s did not reply for vsock port %d", what, t.port)
		if m.kind == machineHyperV {
			text += "; a Hyper-V host sends none if the service is not registered or has no listener"
		}
		return refusedWith(TimedOut, text, "")
	case local && is(syscall.EADDRNOTAVAIL):
		return noVsockLoopback()
	case is(syscall.ENODEV, syscall.ENETUNREACH, syscall.EHOSTUNREACH):
		return refusedWith(NotReachable, fmt.Sprintf("no vsock transport of this machine leads to CID %d", t.cid), "")
	case is(syscall.EPERM, syscall.EACCES):
		return refusedWith(Denied, "the kernel of this machine denied the connect", "")
	}
	return vsockSocketError(err)
}

// listenError converts the error number of a bind or listen.
func (t vsockTarget) listenError(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return refusedWith(AddressInUse, fmt.Sprintf("vsock port %d is in use on this machine; the kernel permits "+
			"one listener per port, whichever partition it is for", t.port), "")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return noVsockLoopback()
	case errors.Is(err, syscall.EACCES):
		return refusedWith(Denied, fmt.Sprintf("vsock port %d is below 1024", t.port),
			"give the process CAP_NET_BIND_SERVICE, or use a higher port")
	}
	return vsockSocketError(err)
}

func noVsockLoopback() error {
	return refusedWith(AddressNotAvailable, "this kernel has no vsock loopback",
		"load the kernel module vsock_loopback")
}

func vsockSocketError(err error) error {
	switch {
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return refusedWith(NotSupported, "this kernel has no AF_VSOCK, or its module vsock is not loaded",
			"load the kernel module vsock")
	case errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOBUFS):
		return refusedWith(LimitReached, "the kernel of this machine has no memory for a socket", "")
	}
	return bare(err)
}
