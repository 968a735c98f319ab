// Package hvsock connects processes of a host, its virtual machines and its containers by Hyper-V sockets:
// stream sockets whose address is a partition and a service, without a network.
//
//	conn, err := hvsock.Dial(ctx, hvsock.Join("parent", "HV Socket Demo"))
//	listener, err := hvsock.Listen(ctx, "hvsock://any/2761")
//
// Connections are [net.Conn], listeners are [net.Listener], so net/http and every other package that takes
// those work over them. The names of addresses, dialer and listener are those of Microsoft's go-winio:
// [HvsockAddr], [HvsockDialer], [ListenHvsock], [VsockServiceID].
//
// On Linux it asks the broker of its partition, by the protocol of docs/endpoint.md. In a virtual machine
// without a broker it uses the kernel's AF_VSOCK. On Windows it uses go-winio, where a program has registered
// it with RegisterWinio. Elsewhere every call fails with [ErrUnsupported].
//
// # Errors
//
// A request that is refused fails with a [*net.OpError] that wraps a [*RefusedError], which has the reason
// and what would help. An established connection that is reset fails with a [*ResetError], which matches
// ECONNRESET. Codes and error numbers match with [errors.Is]:
//
//	errors.Is(err, hvsock.NoListener)
//	errors.Is(err, syscall.ECONNREFUSED)
//	errors.Is(err, os.ErrDeadlineExceeded)
//
// # Ends
//
// [io.EOF] is a clean end: the peer said that it has written all its data. A peer that is killed, a rule
// that forbids the connection, and a broker that dies are errors. So an [io.Copy] without an error has copied
// everything. (The kernel's AF_VSOCK cannot tell these apart.)
//
// Close and CloseWrite say that this end has written all its data. [HvsockConn.Abort] closes without saying
// so, and the peer gets an error.
package hvsock
