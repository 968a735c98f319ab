// Package winio has the signatures of go-winio's Hyper-V sockets that package hvsock.dev/go/winio uses, for a
// machine that cannot download it. Nothing in it works.
package winio

import (
	"context"
	"net"

	"github.com/Microsoft/go-winio/pkg/guid"
)

type HvsockAddr struct{ VMID, ServiceID guid.GUID }

func (*HvsockAddr) Network() string { return "" }
func (*HvsockAddr) String() string  { return "" }

type HvsockConn struct{ net.Conn }

func (*HvsockConn) CloseRead() error  { return nil }
func (*HvsockConn) CloseWrite() error { return nil }

type HvsockListener struct{}

func (*HvsockListener) Accept() (net.Conn, error) { return nil, nil }
func (*HvsockListener) Addr() net.Addr            { return nil }
func (*HvsockListener) Close() error              { return nil }

func Dial(context.Context, *HvsockAddr) (*HvsockConn, error) { return nil, nil }

func ListenHvsock(*HvsockAddr) (*HvsockListener, error) { return nil, nil }
