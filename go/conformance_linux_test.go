package hvsock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// folderVariable names the folder of a broker with the conformance peer and a container `web`. The Rust test
// examples/tests/go.rs starts it.
const folderVariable = "HVSOCK_TEST_FOLDER"

// broker returns the folder of the broker, and directs this process to it.
func broker(t *testing.T) string {
	t.Helper()
	folder := os.Getenv(folderVariable)
	if folder == "" {
		t.Skip("skipped: no broker (`cargo test -p hvsock-examples --test go` starts one)")
	}
	t.Setenv("HVSOCK_ENDPOINT", "")
	t.Setenv("HVSOCK_DIR", folder)
	return folder
}

// pattern returns the first bytes of the pattern: each is the exclusive or of the bytes of its number.
func pattern(count int) []byte {
	data := make([]byte, count)
	for i := range data {
		data[i] = byte(i ^ i>>8 ^ i>>16 ^ i>>24)
	}
	return data
}

func background(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// conformance is the file of the cases.
type conformance struct {
	Service       string
	ClientService string `json:"client_service"`
	Cases         []row
}

// client runs the cases.
type client struct {
	conformance
	ctx context.Context
}

func TestEveryConformanceCaseHolds(t *testing.T) {
	broker(t)
	content, err := os.ReadFile(filepath.Join("..", "docs", "vectors", "conformance.json"))
	if err != nil {
		t.Fatal(err)
	}
	c := client{ctx: background(t)}
	if err := json.Unmarshal(content, &c.conformance); err != nil || len(c.Cases) < 20 {
		t.Fatalf("%d cases: %v", len(c.Cases), err)
	}
	for i, row := range c.Cases {
		i, row := i, row
		t.Run(row.text("name"), func(t *testing.T) {
			if err := c.run(row, fmt.Sprintf("go-%d", i)); err != nil {
				t.Error(err)
			}
		})
	}
}

func (c *client) run(row row, token string) error {
	line := func(key string) string { return strings.ReplaceAll(row.text(key), "{token}", token) }
	err := c.do(row, line)
	if outcome := row.text("outcome"); err == nil && outcome != "" {
		err = c.answer("outcome "+token, outcome)
	}
	return err
}

func (c *client) do(row row, line func(string) string) error {
	switch row.text("do") {
	case "exchange":
		count := int(row.number("connections"))
		failed := make(chan error, count)
		for i := 0; i < count; i++ {
			go func() { failed <- c.exchange(row, line("request")) }()
		}
		return firstOf(failed, count)
	case "close":
		conn, err := c.request(line("request"))
		if err != nil {
			return err
		}
		if _, err = conn.Write(pattern(int(row.number("send")))); err != nil {
			return err
		}
		return conn.Close()
	case "close_unread":
		return c.closeUnread(line("request"))
	case "backpressure":
		return c.backpressure(row, line)
	case "accept":
		return c.accept(row, line("request"))
	case "refused":
		_, err := Dial(c.ctx, Join(row.text("partition"), row.text("service")))
		if refused := RefusalOf(err); refused == nil || refused.Label != row.text("label") {
			return fmt.Errorf("the error is %v", err)
		}
		return nil
	case "deadline":
		return c.deadline(row, line("request"))
	}
	return fmt.Errorf("nobody knows how to do %v", row["do"])
}

func firstOf(failed chan error, count int) error {
	var first error
	for i := 0; i < count; i++ {
		if err := <-failed; first == nil {
			first = err
		}
	}
	return first
}

// request connects to the peer and sends the line of a request.
func (c *client) request(line string) (*HvsockConn, error) {
	conn, err := Dial(c.ctx, Join("loopback", c.Service))
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(limit))
	_, err = conn.Write([]byte(line + "\n"))
	return conn, err
}

func (c *client) answer(line, want string) error {
	conn, err := c.request(line)
	if err != nil {
		return err
	}
	defer conn.Close()
	got, err := io.ReadAll(conn)
	if err == nil && string(got) != want {
		err = fmt.Errorf("the answer is %q, not %q", got, want)
	}
	return err
}

func (c *client) exchange(row row, line string) error {
	conn, err := c.request(line)
	if err != nil {
		return err
	}
	defer conn.Close()
	half := row.text("half_close")
	send := func() error {
		data, write := pattern(int(row.number("send"))), int(row.number("write"))
		for len(data) > 0 {
			size := write
			if size > len(data) {
				size = len(data)
			}
			if _, err := conn.Write(data[:size]); err != nil {
				return err
			}
			data = data[size:]
		}
		if half == "never" {
			return nil
		}
		return conn.CloseWrite()
	}
	sent := make(chan error, 1)
	if half != "after_end" {
		go func() { sent <- send() }()
	}
	received, end := io.ReadAll(conn)
	if half == "after_end" {
		sent <- send()
	}
	if err := <-sent; end == nil {
		end = err
	}
	want := row.object("receive")
	var matches bool
	switch {
	case want["pattern"] != nil:
		matches = bytes.Equal(received, pattern(int(want.number("pattern"))))
	case want["prefix"] != nil:
		matches = bytes.HasPrefix(pattern(int(want.number("prefix"))), received)
	default:
		matches = string(received) == want.text("text")
	}
	isReset := errors.Is(end, syscall.ECONNRESET)
	if !matches || (row.text("end") == "clean") != (end == nil) || end != nil && !isReset {
		return fmt.Errorf("%d bytes arrived, and the end is %v", len(received), end)
	}
	return nil
}

func (c *client) closeUnread(line string) error {
	conn, err := c.request(line)
	if err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return err == nil && n > 0
	})
	if closeErr := conn.Close(); err == nil {
		err = closeErr
	}
	return err
}

func (c *client) backpressure(row row, line func(string) string) error {
	conn, err := c.request(line("request"))
	if err != nil {
		return err
	}
	defer conn.Close()
	data := pattern(int(row.number("limit")))
	sent := 0
	for err == nil {
		if sent == len(data) {
			return errors.New("no write would block")
		}
		_ = conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		var n int
		n, err = conn.Write(data[sent:])
		sent += n
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	_ = conn.SetWriteDeadline(time.Time{})
	if err := c.answer(line("release"), "ok\n"); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	want := fmt.Sprintf("%d %08x\n", sent, crc32.ChecksumIEEE(data[:sent]))
	if err == nil && string(got) != want {
		err = fmt.Errorf("the answer is %q, not %q", got, want)
	}
	return err
}

func (c *client) accept(row row, line string) error {
	listener, err := Listen(c.ctx, Join("any", c.ClientService))
	if err != nil {
		return err
	}
	defer listener.Close()
	_ = listener.SetDeadline(time.Now().Add(limit))
	failed := make(chan error, 1)
	go func() { failed <- c.answer(line, row.object("receive").text("text")) }()
	for i := 0; i < int(row.number("connections")); i++ {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go echo(conn.(*HvsockConn))
	}
	return <-failed
}

// echo returns all data. The peer reports what fails.
func echo(conn *HvsockConn) {
	defer conn.Close()
	if _, err := io.Copy(conn, conn); err != nil {
		_ = conn.Abort()
	}
}

func (c *client) deadline(row row, line string) error {
	conn, err := c.request(line)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(time.Duration(row.number("milliseconds")) * time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the read ends with %v", err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(limit))
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	var back [1]byte
	if _, err := io.ReadFull(conn, back[:]); err != nil || back[0] != 'x' {
		return fmt.Errorf("%q came back: %v", back, err)
	}
	return nil
}
