package hvsock

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Explanation says what a request would do, or why it was refused.
type Explanation struct {
	// Refusal is why the request is refused; nil if it would succeed.
	Refusal *RefusedError
	// Fix is what would turn the refusal into a success; nil if that is not known.
	Fix *Fix
	// Checks are the checks that the broker made, in their order.
	Checks []Check
}

// Fix is what would help.
type Fix struct {
	// Kind is one of the kinds in docs/endpoint.md; empty from an old broker.
	Kind string
	// Text is plain English.
	Text string
	// Data are the values that go with the kind, such as "service".
	Data map[string]string
}

// Check is one check of the broker.
type Check struct {
	// Passed is the result.
	Passed bool
	// Name is one of the names in docs/endpoint.md, such as "registered"; "other" from an old broker.
	Name string
	// Question and Answer are plain English.
	Question, Answer string
	// Subject is the partition, listener or setting that the check is about, if there is one.
	Subject string
	// Rule is the rule that decided, if there is one.
	Rule string
}

// String returns the verdict and one line for each check.
func (e *Explanation) String() string {
	var out strings.Builder
	if e.Refusal == nil {
		out.WriteString("it would succeed")
	} else {
		out.WriteString("refused: " + e.Refusal.reason())
	}
	for _, check := range e.Checks {
		mark := "no "
		if check.Passed {
			mark = "yes"
		}
		out.WriteString("\n" + mark + " " + visible(check.Question) + " " + visible(check.Answer))
		if check.Rule != "" {
			out.WriteString(" (" + visible(check.Rule) + ")")
		}
	}
	if e.Fix != nil {
		out.WriteString("\nhelp: " + visible(e.Fix.Text))
	}
	return out.String()
}

// parseExplanation reads the text of EXPLAINED. Lines and fields that it does not know are ignored.
func parseExplanation(code uint32, text string) *Explanation {
	detail, lines, _ := strings.Cut(text, "\n")
	explanation := &Explanation{}
	for lines != "" {
		line, rest, complete := strings.Cut(lines, "\n")
		lines = rest
		fields := strings.Split(line, "\t")
		word, texts, data := fields[0], fields[1:], make(map[string]string)
		if len(texts) > 2 {
			// Of a line without its end, the last field may be a part of its value.
			for _, field := range texts[2:] {
				if key, value, ok := strings.Cut(field, "="); ok && complete {
					data[key] = value
				}
			}
			texts = texts[:2]
		}
		switch {
		case word == "fix" && len(texts) == 2:
			explanation.Fix = &Fix{Kind: texts[0], Text: texts[1], Data: data}
			if !complete {
				// Without all of its data it is only a text.
				explanation.Fix.Kind = ""
			}
		case word == "fix" && len(texts) == 1:
			explanation.Fix = &Fix{Text: texts[0], Data: data}
		case (word == "pass" || word == "fail") && len(texts) == 2:
			name := data["check"]
			if name == "" {
				name = "other"
			}
			explanation.Checks = append(explanation.Checks, Check{
				Passed:   word == "pass",
				Name:     name,
				Question: texts[0],
				Answer:   texts[1],
				Subject:  data["subject"],
				Rule:     data["rule"],
			})
		}
	}
	if code != 0 {
		explanation.Refusal = newRefused(code, detail)
		explanation.Refusal.Explanation = explanation
		if explanation.Fix != nil {
			explanation.Refusal.Fix = visible(explanation.Fix.Text)
		}
	}
	return explanation
}

// visible returns text with every character escaped that is not visible by itself, so that a name of another
// partition cannot forge a line of a log or control a terminal. It has at most about 4096 bytes.
func visible(text string) string {
	const longest = 4096
	clean := true
	for _, char := range text {
		clean = clean && char != utf8.RuneError && isPrintable(char)
	}
	if clean && len(text) <= longest {
		return text
	}
	var out strings.Builder
	for at, char := range text {
		switch {
		case out.Len() > longest:
			out.WriteString("…")
			return out.String()
		case char == utf8.RuneError && !strings.HasPrefix(text[at:], "\ufffd"):
			fmt.Fprintf(&out, "\\x%02x", text[at])
		case isPrintable(char):
			out.WriteRune(char)
		default:
			quoted := strconv.QuoteRuneToASCII(char)
			out.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return out.String()
}
