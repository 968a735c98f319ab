package hvsock

import (
	"bufio"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A client of the text protocol in ten lines, which runs docs/vectors/text.json.

// parseText returns the text after OK, or the label and the reason of a refusal.
func parseText(line string) (ok, label, reason string, err error) {
	text := strings.TrimSuffix(line, "\n")
	if text == line || len(line) > 4096 || strings.Contains(text, "\n") {
		return "", "", "", errors.New("not_a_line")
	}
	switch word, rest, _ := strings.Cut(text, " "); word {
	case "OK":
		return rest, "", "", nil
	case "ERR":
		label, reason, _ = strings.Cut(rest, " ")
		return "", label, reason, nil
	}
	return "", "", "", errors.New("unknown")
}

func TestAnswersOfTheTextProtocolAreReadAsInTheVectors(t *testing.T) {
	section := vectors(t, "text.json")
	for _, row := range section("answers") {
		ok, label, reason, err := parseText(row.text("line"))
		if err != nil || ok != row.text("ok") || label != row.text("label") || reason != row.text("reason") {
			t.Errorf("%v is %q, %q, %q, %v", row, ok, label, reason, err)
		}
	}
	for _, row := range section("invalid_answers") {
		if _, _, _, err := parseText(row.text("line")); err == nil || err.Error() != row.text("error") {
			t.Errorf("%v is %v", row, err)
		}
	}
}

func TestABrokerTakesEveryTextRequestAndRefusesEveryInvalidOne(t *testing.T) {
	folder := os.Getenv(folderVariable)
	if folder == "" {
		t.Skipf("skipped: %s names no broker's folder", folderVariable)
	}
	ask := func(line string) (label string) {
		conn, err := net.Dial("unix", filepath.Join(folder, "text"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(limit))
		if _, err := conn.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		answer, _ := bufio.NewReader(conn).ReadString('\n')
		_, label, _, err = parseText(answer)
		if err != nil {
			t.Fatalf("%q: %q: %v", line, answer, err)
		}
		return label
	}
	section := vectors(t, "text.json")
	for _, row := range section("requests") {
		if label := ask(row.text("line")); label == "invalid_request" {
			t.Errorf("%v: %v", row, label)
		}
	}
	for _, row := range section("invalid_requests") {
		if label := ask(row.text("line")); label != "invalid_request" {
			t.Errorf("%v: %v", row, label)
		}
	}
}
