// Command http serves HTTP over Hyper-V sockets, and is a client of it.
//
//	http serve ADDRESS       such as hvsock://any/HV%20Socket%20Demo
//	http get ADDRESS [PATH]  such as hvsock://parent/HV%20Socket%20Demo
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	hvsock "hvsock.dev/go"
)

func main() {
	log.SetFlags(0)
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "serve":
		err = serve(args[1])
	case len(args) == 2 && args[0] == "get":
		err = get(args[1], "/")
	case len(args) == 3 && args[0] == "get":
		err = get(args[1], args[2])
	default:
		err = errors.New("usage: http serve ADDRESS | http get ADDRESS [PATH]")
	}
	if err != nil {
		log.Fatal("http: ", err)
	}
}

// peerKey is the context's key of the peer of a request's connection.
type peerKey struct{}

func serve(address string) error {
	listener, err := hvsock.Listen(context.Background(), address)
	if err != nil {
		return err
	}
	fmt.Println("listening at", listener.Addr())
	server := http.Server{
		Handler:           http.HandlerFunc(hello),
		ReadHeaderTimeout: 10 * time.Second,
		// Who asks: the broker says it, the peer cannot.
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, conn.(*hvsock.HvsockConn).Peer())
		},
	}
	return server.Serve(listener)
}

func hello(w http.ResponseWriter, r *http.Request) {
	peer := r.Context().Value(peerKey{}).(hvsock.Peer)
	fmt.Fprintf(w, "hello %s, you asked for %s\n", peer.Partition, r.URL.Path)
}

func get(address, path string) error {
	transport := &http.Transport{
		// The host of a URL says nothing here: the address does.
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(hvsock.Dialer).DialContext(ctx, "hvsock", address)
		},
		// One request only. A client with more keeps its connections.
		DisableKeepAlives: true,
	}
	client := http.Client{Transport: transport, Timeout: 10 * time.Second}
	response, err := client.Get("http://hvsock" + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}
