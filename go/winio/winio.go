//go:build windows

package winio

import (
	"context"
	"net"

	gowinio "github.com/Microsoft/go-winio"
	"github.com/Microsoft/go-winio/pkg/guid"
	hvsock "hvsock.dev/go"
)

func init() {
	hvsock.RegisterWinio(hvsock.Winio{Dial: dial, Listen: listen})
}

func to(addr hvsock.HvsockAddr) *gowinio.HvsockAddr {
	return &gowinio.HvsockAddr{VMID: guid.GUID(addr.VMID), ServiceID: guid.GUID(addr.ServiceID)}
}

// from converts an address of go-winio, so that programs see one type on every system.
func from(addr net.Addr) net.Addr {
	if addr, ok := addr.(*gowinio.HvsockAddr); ok {
		return &hvsock.HvsockAddr{VMID: hvsock.GUID(addr.VMID), ServiceID: hvsock.GUID(addr.ServiceID)}
	}
	return addr
}

func dial(ctx context.Context, addr hvsock.HvsockAddr) (net.Conn, error) {
	made, err := gowinio.Dial(ctx, to(addr))
	if err != nil {
		return nil, err
	}
	return conn{made}, nil
}

func listen(addr hvsock.HvsockAddr) (net.Listener, error) {
	made, err := gowinio.ListenHvsock(to(addr))
	if err != nil {
		return nil, err
	}
	return listener{made}, nil
}

// conn has the addresses of package hvsock.
type conn struct{ *gowinio.HvsockConn }

func (c conn) LocalAddr() net.Addr  { return from(c.HvsockConn.LocalAddr()) }
func (c conn) RemoteAddr() net.Addr { return from(c.HvsockConn.RemoteAddr()) }

type listener struct{ *gowinio.HvsockListener }

func (l listener) Accept() (net.Conn, error) {
	made, err := l.HvsockListener.Accept()
	if err != nil {
		return nil, err
	}
	if made, ok := made.(*gowinio.HvsockConn); ok {
		return conn{made}, nil
	}
	return made, nil
}

func (l listener) Addr() net.Addr { return from(l.HvsockListener.Addr()) }
