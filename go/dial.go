package hvsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// DefaultTimeout is how long a peer has to answer where neither a context nor a deadline says it.
const DefaultTimeout = 2 * time.Second

// maxWait is how long the broker has to answer beyond the timeout of the peer.
const maxWait = 5 * time.Second

// HvsockDialer connects to services. The zero value is ready for use. It has the fields of go-winio's.
type HvsockDialer struct {
	// Deadline is when Dial gives up, whichever of it and the context's deadline is sooner.
	Deadline time.Time
	// Retries is the number of further attempts if the peer does not answer, refuses, or is not there.
	Retries uint
	// RetryWait is the time between attempts.
	RetryWait time.Duration
	// Endpoint is the path of the broker's endpoint socket. Empty: as the environment says.
	Endpoint string
	// ConnectedSuspend keeps connections while a partition is paused (HVSOCKET_CONNECTED_SUSPEND).
	ConnectedSuspend bool
	// Action and Detail say what the connection is for, in the broker's audit: one word, and the command line,
	// paths or addresses. Nothing is decided by them.
	Action, Detail string
}

// Dialer is HvsockDialer.
type Dialer = HvsockDialer

// Dial connects to an hvsock:// URL; see [Join].
//
// When ctx ends first, the attempt ends at once and the error matches that of ctx.
func Dial(ctx context.Context, address string) (*HvsockConn, error) {
	return new(HvsockDialer).dialText(ctx, address)
}

// DialTimeout connects to an hvsock:// URL and gives up after timeout.
func DialTimeout(address string, timeout time.Duration) (*HvsockConn, error) {
	dialer := HvsockDialer{Deadline: time.Now().Add(timeout)}
	return dialer.dialText(context.Background(), address)
}

// DialHvsock connects to an address, as go-winio's Dial.
func DialHvsock(ctx context.Context, addr *HvsockAddr) (*HvsockConn, error) {
	return new(HvsockDialer).Dial(ctx, addr)
}

// Dial connects to an address.
func (d *HvsockDialer) Dial(ctx context.Context, addr *HvsockAddr) (*HvsockConn, error) {
	if addr == nil {
		return nil, opError("dial", nil, nil, errors.New("missing address"))
	}
	return d.DialAddress(ctx, addr.Address())
}

// DialContext connects to an hvsock:// URL. The network is "hvsock". It has the form that [net.Dialer] has,
// for fields such as DialContext of http.Transport.
func (d *HvsockDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if network != "hvsock" {
		return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
	}
	conn, err := d.dialText(ctx, address)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (d *HvsockDialer) dialText(ctx context.Context, text string) (*HvsockConn, error) {
	address, err := ParseAddress(text)
	if err != nil {
		return nil, opError("dial", nil, nil, &net.AddrError{Err: err.Error(), Addr: text})
	}
	return d.DialAddress(ctx, address)
}

// DialAddress connects to an address that may have names.
func (d *HvsockDialer) DialAddress(ctx context.Context, address Address) (*HvsockConn, error) {
	if err := address.check(); err != nil {
		return nil, opError("dial", nil, address, err)
	}
	if !d.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, d.Deadline)
		defer cancel()
	}
	for attempt := uint(0); ; attempt++ {
		conn, err := d.attempt(ctx, address, d.Retries-attempt)
		if err == nil {
			return conn, nil
		}
		if attempt >= d.Retries || ctx.Err() != nil || !mayRetry(err) || !sleep(ctx, d.RetryWait) {
			return nil, opError("dial", nil, address, err)
		}
	}
}

// attempt connects once. Of the time that is left, it takes its share only.
func (d *HvsockDialer) attempt(ctx context.Context, address Address, retries uint) (*HvsockConn, error) {
	if err := contextError(ctx); err != nil {
		return nil, err
	}
	request := request{
		kind:             kindConnect,
		address:          address,
		endpoint:         d.Endpoint,
		connectedSuspend: d.ConnectedSuspend,
		action:           d.Action,
		detail:           d.Detail,
		timeout:          DefaultTimeout,
	}
	wait := DefaultTimeout + maxWait
	if deadline, ok := ctx.Deadline(); ok {
		wait = time.Until(deadline) / time.Duration(retries+1)
		// The broker answers in time, so that the error has its reason.
		request.timeout = wait - min(wait/8, 50*time.Millisecond)
	}
	attempt, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	result, err := perform(attempt, request)
	if err != nil {
		return nil, err
	}
	return result.conn, nil
}

// sleep waits, and returns false if ctx ended meanwhile.
func sleep(ctx context.Context, duration time.Duration) bool {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// mayRetry returns whether the same connect may succeed a moment later.
func mayRetry(err error) bool {
	for _, number := range []error{
		syscall.ECONNREFUSED, syscall.ETIMEDOUT, syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.EHOSTDOWN,
		syscall.ENOBUFS, syscall.ECONNRESET,
	} {
		if errors.Is(err, number) {
			return true
		}
	}
	var none *NoBrokerError
	var timeout *timeoutError
	return errors.As(err, &none) || errors.As(err, &timeout)
}

// contextError returns the error of a context that has ended, or nil.
func contextError(ctx context.Context) error {
	switch err := ctx.Err(); err {
	case nil:
		return nil
	case context.DeadlineExceeded:
		return &timeoutError{"no answer before the deadline"}
	default:
		return err
	}
}

func min(a, b time.Duration) time.Duration {
	if a < b {
		return a
	}
	return b
}

// request is what a program asks for.
type request struct {
	// kind is kindConnect, kindListen, or kindRegister.
	kind     byte
	address  Address
	endpoint string
	// dryRun asks what would happen.
	dryRun bool
	// timeout is how long the peer of a connect has to answer.
	timeout          time.Duration
	backlog          uint32
	connectedSuspend bool
	action, detail   string
	// name and purpose are those of a lease on the service of address.
	name, purpose string
}

// result is what became of a request; it has one of these.
type result struct {
	conn        *HvsockConn
	listener    *HvsockListener
	explanation *Explanation
	lease       *Lease
}

// Explain says what Dial would do with an hvsock:// URL, without doing it. A refusal is no error here.
func Explain(ctx context.Context, address string) (*Explanation, error) {
	return explain(ctx, kindConnect, address)
}

// ExplainListen says what Listen would do.
func ExplainListen(ctx context.Context, address string) (*Explanation, error) {
	return explain(ctx, kindListen, address)
}

func explain(ctx context.Context, kind byte, text string) (*Explanation, error) {
	address, err := ParseAddress(text)
	if err != nil {
		return nil, opError("explain", nil, nil, &net.AddrError{Err: err.Error(), Addr: text})
	}
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	result, err := perform(ctx, request{kind: kind, address: address, dryRun: true, timeout: DefaultTimeout})
	if err != nil {
		return nil, opError("explain", nil, address, err)
	}
	return result.explanation, nil
}

// Lease is a registration that lasts as long as it is open. Only the broker's user and root may take one.
type Lease struct {
	closer interface{ Close() error }
	wait   func() error
}

// Register registers a service with a friendly name and a purpose, which may be empty, until the lease is
// closed or this process ends.
func Register(ctx context.Context, service GUID, name, purpose string) (*Lease, error) {
	address := Address{ServiceID: service}
	if err := checkServiceName(name); err != nil {
		return nil, opError("register", nil, address, err)
	}
	if len(purpose) > maxMessage/2 {
		return nil, opError("register", nil, address, fmt.Errorf("a purpose has at most %d bytes", maxMessage/2))
	}
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	result, err := perform(ctx, request{kind: kindRegister, address: address, name: name, purpose: purpose})
	if err != nil {
		return nil, opError("register", nil, address, err)
	}
	return result.lease, nil
}

// Close ends the lease.
func (l *Lease) Close() error { return l.closer.Close() }

// Wait waits until the lease ends, and returns why. After Close that is net.ErrClosed.
func (l *Lease) Wait() error { return bare(l.wait()) }
