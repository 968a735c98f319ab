package hvsock

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The longest names, in bytes.
const (
	maxServiceName   = 255
	maxPartitionName = 63
)

// InvalidNameError says why a text is no name of a partition or service.
type InvalidNameError struct {
	// Text is the text.
	Text string
	// Why is the rule that it breaks.
	Why string

	// One word, for tests: empty, too_long, character, taken, port_too_large.
	kind string
}

func (e *InvalidNameError) Error() string {
	return fmt.Sprintf("%q is not a name: %s", e.Text, e.Why)
}

func invalidName(kind, text, why string) *InvalidNameError {
	const longest = 300
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + "…"
	}
	return &InvalidNameError{Text: text, Why: why, kind: kind}
}

// checkServiceName checks a friendly name: 1 to 255 bytes of visible characters of any script, and spaces that
// are not at either end. A GUID and a port are no names.
func checkServiceName(text string) error {
	if strings.TrimSpace(text) == "" {
		return invalidName("empty", text, "it is empty")
	}
	if len(text) > maxServiceName {
		return invalidName("too_long", text, fmt.Sprintf("it has %d bytes; the limit is %d", len(text), maxServiceName))
	}
	if !utf8.ValidString(text) {
		return invalidName("character", text, "it is not UTF-8")
	}
	for _, char := range text {
		if !isPrintable(char) {
			why := fmt.Sprintf("it has visible characters and spaces only, and not %U", char)
			return invalidName("character", text, why)
		}
	}
	if text[0] == ' ' || text[len(text)-1] == ' ' {
		return invalidName("character", text, "it cannot start or end with white space")
	}
	if _, err := FromString(text); err == nil {
		return invalidName("taken", text, "it already means a service's GUID")
	}
	digits, ok := portDigits(text)
	if !ok {
		digits = strings.TrimPrefix(text, "+")
	}
	if _, err := strconv.ParseUint(digits, 10, 32); err == nil {
		return invalidName("taken", text, "it already means a vsock port")
	}
	return nil
}

// checkPartitionName checks the name of a partition: 1 to 63 of a-z A-Z 0-9 . _ -, starting with a letter or
// digit, or two such names with a slash between them, for a container in a virtual machine.
func checkPartitionName(text string) error {
	parts := []string{text}
	if vm, container, ok := strings.Cut(text, "/"); ok && vm != "" && container != "" {
		parts = []string{vm, container}
	}
	for _, part := range parts {
		if err := checkPartitionPart(text, part); err != nil {
			return err
		}
	}
	return nil
}

func checkPartitionPart(text, part string) error {
	if part == "" {
		return invalidName("empty", text, "it is empty")
	}
	if len(part) > maxPartitionName {
		return invalidName("too_long", text, fmt.Sprintf("it has %d bytes; the limit is %d", len(part), maxPartitionName))
	}
	for i, char := range part {
		alphanumeric := char >= 'a' && char <= 'z' || char >= 'A' && char <= 'Z' || char >= '0' && char <= '9'
		if !alphanumeric && (i == 0 || !strings.ContainsRune("._-", char)) {
			why := fmt.Sprintf("%q is not allowed there; letters, digits, `.`, `_` and `-` are, after a letter or digit", char)
			return invalidName("character", text, why)
		}
	}
	folded := asciiLower(part)
	_, isWord := wordID(folded)
	if isWord || folded == "host" || folded == "self" {
		return invalidName("taken", text, "it already means a partition seen from the caller")
	}
	if _, err := FromString(part); err == nil {
		return invalidName("taken", text, "it already means a partition's GUID")
	}
	return nil
}

// isPrintable returns whether char is visible, or a space, and does not change how its neighbours look.
//
// A character that this version of Go does not know is left to the broker, which may have a newer Unicode.
func isPrintable(char rune) bool {
	switch {
	case char >= ' ' && char <= '~':
		return true
	case char < utf8.RuneSelf || char == '\u2800' || unicode.Is(defaultIgnorable, char):
		return false
	case char&0xfffe == 0xfffe || char >= 0xfdd0 && char <= 0xfdef:
		return false
	}
	return !unicode.In(char, unicode.Z, unicode.C)
}

// defaultIgnorable is Unicode's property Default_Ignorable_Code_Point (Unicode 16), with the interlinear
// annotation characters U+FFF9 to U+FFFB.
var defaultIgnorable = &unicode.RangeTable{
	R16: []unicode.Range16{
		{Lo: 0xad, Hi: 0xad, Stride: 1},
		{Lo: 0x34f, Hi: 0x34f, Stride: 1},
		{Lo: 0x61c, Hi: 0x61c, Stride: 1},
		{Lo: 0x115f, Hi: 0x1160, Stride: 1},
		{Lo: 0x17b4, Hi: 0x17b5, Stride: 1},
		{Lo: 0x180b, Hi: 0x180f, Stride: 1},
		{Lo: 0x200b, Hi: 0x200f, Stride: 1},
		{Lo: 0x202a, Hi: 0x202e, Stride: 1},
		{Lo: 0x2060, Hi: 0x206f, Stride: 1},
		{Lo: 0x3164, Hi: 0x3164, Stride: 1},
		{Lo: 0xfe00, Hi: 0xfe0f, Stride: 1},
		{Lo: 0xfeff, Hi: 0xfeff, Stride: 1},
		{Lo: 0xffa0, Hi: 0xffa0, Stride: 1},
		{Lo: 0xfff0, Hi: 0xfffb, Stride: 1},
	},
	R32: []unicode.Range32{
		{Lo: 0x1bca0, Hi: 0x1bca3, Stride: 1},
		{Lo: 0x1d173, Hi: 0x1d17a, Stride: 1},
		{Lo: 0xe0000, Hi: 0xe0fff, Stride: 1},
	},
	LatinOffset: 1,
}
