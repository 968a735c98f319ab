//go:build linux && !386 && !s390x

package hvsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"
)

// Questions of a guest to the broker of its host, which has the names and the rules (docs/uplink.md). A host may have
// none, or another program may answer there, so nothing that arrives is trusted.

const (
	hostLookup    = 0x01
	hostExplain   = 0x02
	hostFound     = 0x81
	hostRefused   = 0x82
	hostExplained = 0x90

	// whyTimeout bounds the question why the host refused.
	whyTimeout = 500 * time.Millisecond
)

// readFrame reads a frame: a length and a message of that many bytes.
func readFrame(from io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(from, length[:]); err != nil {
		return nil, errors.New("the host closed the connection to vsock port 920 without an answer")
	}
	size := binary.LittleEndian.Uint32(length[:])
	if size < headerSize || size > maxMessage {
		return nil, notOurHost(fmt.Sprintf("a frame of %d bytes", size))
	}
	message := make([]byte, size)
	if _, err := io.ReadFull(from, message); err != nil {
		return nil, errors.New("the host closed the connection to vsock port 920 without an answer")
	}
	if message[0] != wireVersion || message[2] != 0 || message[3] != 0 {
		return nil, notOurHost("another protocol")
	}
	return message, nil
}

func notOurHost(what string) error {
	return fmt.Errorf("what answers at vsock port 920 of the host is no broker of hvsock: %s", what)
}

// hostRefusal reads a refusal at an offset of an answer.
func hostRefusal(message []byte, at int) (code uint32, text string, err error) {
	if len(message) < at+8 || !utf8.Valid(message[at+8:]) {
		return 0, "", notOurHost("an invalid refusal")
	}
	return binary.LittleEndian.Uint32(message[at:]), string(message[at+8:]), nil
}

// resolveByHost returns the ids of an address, whose names the host's broker looks up.
func resolveByHost(ctx context.Context, m machine, address Address) (HvsockAddr, error) {
	ids := address.ids()
	if address.Partition != "" {
		// The host's partitions cannot be reached from here, whatever their names.
		return ids, &NoRegistryError{Name: address.Partition, What: "partition"}
	}
	if address.Service == "" {
		return ids, nil
	}
	question := appendText(appendNumber(header(hostLookup, 0), lookupService), address.Service)
	answers, err := askHost(ctx, m, question)
	if err != nil {
		if ctxErr := contextError(ctx); ctxErr != nil {
			return ids, ctxErr
		}
		return ids, &NoRegistryError{Name: address.Service, What: "service", Cause: err}
	}
	switch answer := answers[0]; {
	case answer[1] == hostFound && len(answer) == 20:
		ids.ServiceID = readGUID(answer[4:])
		return ids, nil
	case answer[1] == hostRefused:
		code, text, err := hostRefusal(answer, 4)
		if err == nil {
			return ids, newRefused(code, text)
		}
	}
	cause := notOurHost("an answer to no question")
	return ids, &NoRegistryError{Name: address.Service, What: "service", Cause: cause}
}

// askHostWhy asks what the host would say to a connect or listen.
func askHostWhy(ctx context.Context, m machine, kind byte, service GUID) (*Explanation, error) {
	const connect, listen = 1, 2
	what := uint32(connect)
	if kind == kindListen {
		what = listen
	}
	addr := HvsockAddr{VMID: guidParent, ServiceID: service}
	question := binary.LittleEndian.AppendUint64(header(hostExplain, 0), 1)
	question = appendNumber(appendNumber(question, 0), what)
	answers, err := askHost(ctx, m, addr.appendTo(question))
	if err != nil {
		return nil, err
	}
	answer := answers[0]
	if answer[1] != hostExplained || len(answer) < 12 {
		return nil, notOurHost("an answer to no question")
	}
	code, text, err := hostRefusal(answer, 12)
	if err != nil {
		return nil, err
	}
	return parseExplanation(code, text), nil
}

// whyByHost returns the host's reason for refusing a connect, or refused if it gives none. The kernel's reset has
// no reason.
func whyByHost(ctx context.Context, m machine, target vsockTarget, refused error) error {
	if target.cid == cidLocal || !errors.Is(refused, NoListener) {
		return refused
	}
	ctx, cancel := context.WithTimeout(ctx, whyTimeout)
	defer cancel()
	explanation, err := askHostWhy(ctx, m, kindConnect, target.addr.ServiceID)
	switch {
	case err != nil:
		return refused
	case explanation.Refusal == nil:
		return refusedWith(NoListener, fmt.Sprintf("the host refused the connection to vsock port %d, which it would "+
			"accept now", target.port), "try again")
	}
	return explanation.Refusal
}
