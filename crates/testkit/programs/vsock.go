// Command vsock is an AF_VSOCK program that knows nothing of hvsock: a client and a server with
// github.com/mdlayher/vsock. Tests build it as a static program, which no preloaded library reaches:
//
//	CGO_ENABLED=0 GO111MODULE=off GOPATH=/usr/share/gocode go build -o vsock vsock.go
//
// Usage:
//
//	vsock cid                     prints the context id of this machine
//	vsock listen PORT             prints "listening CID:PORT", then echoes the data of each connection
//	vsock accept PORT             the same for one connection; it ends with it
//	vsock connect CID PORT        sends stdin, half-closes, and prints what comes back
//	vsock dials CID PORT COUNT    makes COUNT connections at once; each must echo a line of its own
//	vsock deadline CID PORT       sends nothing; a read must time out after 50 ms, then an echo must work
//	vsock close PORT              an Accept must end when another goroutine closes the listener
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/mdlayher/vsock"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("vsock: ")
	if err := run(os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(args []string) error {
	numbers := make([]uint32, 3)
	for i := range numbers {
		if i+1 < len(args) {
			number, err := strconv.ParseUint(args[i+1], 10, 32)
			if err != nil {
				return err
			}
			numbers[i] = uint32(number)
		}
	}
	words := ""
	if len(args) > 0 {
		words = fmt.Sprint(args[0], " ", len(args)-1)
	}
	switch words {
	case "cid 0":
		cid, err := vsock.ContextID()
		if err != nil {
			return err
		}
		fmt.Println(cid)
		return nil
	case "listen 1":
		return listen(numbers[0], false)
	case "accept 1":
		return listen(numbers[0], true)
	case "connect 2":
		return connect(numbers[0], numbers[1])
	case "dials 3":
		return dials(numbers[0], numbers[1], int(numbers[2]))
	case "deadline 2":
		return deadline(numbers[0], numbers[1])
	case "close 1":
		return closeWhileAccepting(numbers[0])
	}
	return errors.New("usage: vsock cid | listen PORT | accept PORT | connect CID PORT | " +
		"dials CID PORT COUNT | deadline CID PORT | close PORT")
}

func listen(port uint32, once bool) error {
	listener, err := vsock.Listen(port, nil)
	if err != nil {
		return err
	}
	defer listener.Close()
	address := listener.Addr().(*vsock.Addr)
	fmt.Printf("listening %d:%d\n", address.ContextID, address.Port)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		peer := conn.RemoteAddr().(*vsock.Addr)
		fmt.Fprintf(os.Stderr, "connection from %d:%d\n", peer.ContextID, peer.Port)
		if once {
			return echo(conn)
		}
		go func() {
			if err := echo(conn); err != nil {
				log.Print(err)
			}
		}()
	}
}

func echo(conn net.Conn) error {
	defer conn.Close()
	if _, err := io.Copy(conn, conn); err != nil {
		return err
	}
	return conn.(*vsock.Conn).CloseWrite()
}

func connect(cid, port uint32) error {
	conn, err := vsock.Dial(cid, port, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, os.Stdin)
		if err == nil {
			err = conn.CloseWrite()
		}
		sent <- err
	}()
	if _, err := io.Copy(os.Stdout, conn); err != nil {
		return err
	}
	return <-sent
}

func dials(cid, port uint32, count int) error {
	failed := make(chan error, count)
	var all sync.WaitGroup
	for i := 0; i < count; i++ {
		line := []byte(fmt.Sprintf("line %d\n", i))
		all.Add(1)
		go func() {
			defer all.Done()
			if err := exchange(cid, port, line); err != nil {
				failed <- err
			}
		}()
	}
	all.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return fmt.Errorf("%d of %d failed: %w", len(failed)+1, count, err)
	}
	fmt.Println(count, "connections")
	return nil
}

// exchange sends data on a connection of its own and expects it back, and then the end.
func exchange(cid, port uint32, data []byte) error {
	conn, err := vsock.Dial(cid, port, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	return exchangeOn(conn, data)
}

func exchangeOn(conn *vsock.Conn, data []byte) error {
	if _, err := conn.Write(data); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	back, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("%q came back for %q", back, data)
	}
	return nil
}

func deadline(cid, port uint32) error {
	conn, err := vsock.Dial(cid, port, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		return err
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("a read with a deadline: %v", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if err := exchangeOn(conn, []byte("after the deadline")); err != nil {
		return err
	}
	fmt.Println("timed out")
	return nil
}

func closeWhileAccepting(port uint32) error {
	listener, err := vsock.Listen(port, nil)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		_, err := listener.Accept()
		ended <- err
	}()
	if err := listener.Close(); err != nil {
		return err
	}
	select {
	case err := <-ended:
		if err == nil {
			return errors.New("a closed listener accepted a connection")
		}
	case <-time.After(10 * time.Second):
		return errors.New("Accept does not end")
	}
	fmt.Println("closed")
	return nil
}
