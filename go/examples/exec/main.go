// Command exec runs a command for each connection, whose standard input and output are the connection.
//
//	exec serve ADDRESS COMMAND [ARGUMENT]...
//	exec connect ADDRESS                      with this process's standard input and output
//
// A command that fails aborts its connection, so nobody takes what it wrote for complete.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"

	hvsock "hvsock.dev/go"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("exec: ")
	var err error
	switch args := os.Args[1:]; {
	case len(args) >= 3 && args[0] == "serve":
		err = serve(args[1], args[2:])
	case len(args) == 2 && args[0] == "connect":
		err = connect(args[1])
	default:
		err = errors.New("usage: exec serve ADDRESS COMMAND [ARGUMENT]... | exec connect ADDRESS")
	}
	if err != nil {
		log.Fatal(err)
	}
}

func serve(address string, command []string) error {
	listener, err := hvsock.Listen(context.Background(), address)
	if err != nil {
		return err
	}
	fmt.Println("listening at", listener.Addr())
	for {
		conn, err := listener.AcceptHvsock()
		if err != nil {
			return err
		}
		go func() {
			if err := run(conn, command); err != nil {
				log.Printf("%s for %s: %v", command[0], conn.Peer().Partition, err)
				_ = conn.Abort()
				return
			}
			_ = conn.Close()
		}()
	}
}

// run runs the command to its end.
func run(conn *hvsock.HvsockConn, command []string) error {
	child := exec.Command(command[0], command[1:]...)
	child.Stdout, child.Stderr = conn, os.Stderr
	// Not child.Stdin: Wait would wait for the end of the connection, too.
	stdin, err := child.StdinPipe()
	if err != nil {
		return err
	}
	if err := child.Start(); err != nil {
		return err
	}
	go func() {
		// A peer that is killed has not said all that it had to say: its command must not take it for complete.
		if _, err := io.Copy(stdin, conn); errors.Is(err, hvsock.Reset) {
			_ = child.Process.Kill()
		}
		_ = stdin.Close()
	}()
	return child.Wait()
}

func connect(address string) error {
	conn, err := hvsock.Dial(context.Background(), address)
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
	// It ends without an error only if the command has succeeded.
	if _, err := io.Copy(os.Stdout, conn); err != nil {
		return err
	}
	select {
	case err := <-sent:
		return err
	default:
		// The command has ended before its input.
		return nil
	}
}
