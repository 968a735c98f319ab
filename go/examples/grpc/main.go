// Command grpc serves gRPC over Hyper-V sockets, and is a client of it. The service is gRPC's health check, which needs
// no generated code of its own.
//
//	grpc serve ADDRESS    such as hvsock://any/HV%20Socket%20Demo
//	grpc check ADDRESS    such as hvsock://parent/HV%20Socket%20Demo
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"hvsock.dev/go"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("grpc: ")
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "serve":
		err = serve(args[1])
	case len(args) == 2 && args[0] == "check":
		err = check(args[1])
	default:
		err = errors.New("usage: grpc serve ADDRESS | grpc check ADDRESS")
	}
	if err != nil {
		log.Fatal(err)
	}
}

func serve(address string) error {
	listener, err := hvsock.Listen(context.Background(), address)
	if err != nil {
		return err
	}
	fmt.Println("listening at", listener.Addr())
	server := grpc.NewServer(grpc.UnaryInterceptor(logPeer))
	healthpb.RegisterHealthServer(server, health.NewServer())
	return server.Serve(listener)
}

// logPeer prints the address of each caller.
func logPeer(ctx context.Context, request interface{}, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (
	interface{}, error,
) {
	if caller, ok := peer.FromContext(ctx); ok {
		fmt.Println(info.FullMethod, "by", caller.Addr)
	}
	return handler(ctx, request)
}

func check(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// passthrough hands the address to the dialer as it is.
	conn, err := grpc.DialContext(ctx, "passthrough:///"+address,
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return new(hvsock.Dialer).DialContext(ctx, "hvsock", address)
		}),
		grpc.WithAuthority("hvsock"),
		// The broker authenticates both ends.
		grpc.WithInsecure(),
		// Otherwise the reason of a refused connect is replaced by a timeout.
		grpc.FailOnNonTempDialError(true),
		grpc.WithBlock(),
		grpc.WithReturnConnectionError(),
	)
	if err != nil {
		return err
	}
	defer conn.Close()
	response, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return err
	}
	fmt.Println(response.Status)
	return nil
}
