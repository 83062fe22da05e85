package main

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"github.com/rivo/uniseg"
)

// editor is the line at the bottom of a chat: what has been typed and where the cursor stands. It is pure: bytes of the
// terminal go in, actions come out, and view draws it. Cells are counted per grapheme, so that Chinese text and emoji
// are erased and drawn whole.
type editor struct {
	clusters []string // graphemes
	cursor   int      // index into clusters
	rest     []byte   // an escape sequence or character that is not complete yet
	pasting  bool     // between the marks of a bracketed paste
}

// action is what a key means to the chat.
type action int

const (
	actNone action = iota
	actEdit
	actEnter
	actEnd       // ctrl-D on an empty line
	actInterrupt // ctrl-C
	actRedraw    // ctrl-L
)

// maxEdited bounds the line, in graphemes; what is longer is better sent from a file.
const maxEdited = 16 << 10

const (
	pasteBegin = "\x1b[200~"
	pasteEnd   = "\x1b[201~"
)

// feed takes bytes from the terminal and calls do for every action, in order; submitted is the line of actEnter.
func (e *editor) feed(b []byte, do func(act action, submitted string)) {
	e.rest = append(e.rest, b...)
	for len(e.rest) > 0 {
		n, act := e.step(e.rest)
		if n == 0 {
			return // incomplete: wait for more
		}
		e.rest = e.rest[n:]
		if act == actEnter {
			line := strings.Join(e.clusters, "")
			e.clusters, e.cursor = nil, 0
			do(actEnter, line)
			continue
		}
		if act != actNone {
			do(act, "")
		}
	}
	e.rest = nil
}

// step handles one key at the beginning of b and says how many bytes it took; 0 if it is not complete.
func (e *editor) step(b []byte) (int, action) {
	if b[0] == 0x1b {
		return e.escape(b)
	}
	if b[0] < 0x20 || b[0] == 0x7f {
		return 1, e.control(b[0])
	}
	if !utf8.FullRune(b) && len(b) < utf8.UTFMax {
		return 0, actNone
	}
	// Everything up to the next control character is text; it is taken at once so that a paste is quick.
	end := bytes.IndexFunc(b, unicode.IsControl)
	if end < 0 {
		end = len(b)
		for end > 0 && len(b)-end < utf8.UTFMax && !utf8.FullRune(b[lastRune(b):]) {
			end = lastRune(b)
			break
		}
	}
	if end == 0 { // a C1 control character, two bytes in UTF-8
		_, n := utf8.DecodeRune(b)
		return n, actNone
	}
	e.insert(string(bytes.ToValidUTF8(b[:end], []byte("\uFFFD"))))
	return end, actEdit
}

// lastRune is where the last, possibly cut, character of b begins.
func lastRune(b []byte) int {
	i := len(b) - 1
	for i > 0 && len(b)-i < utf8.UTFMax && !utf8.RuneStart(b[i]) {
		i--
	}
	return i
}

// control handles one control character.
func (e *editor) control(c byte) action {
	if e.pasting && (c == '\r' || c == '\n') {
		e.insert("\n") // lines of a paste belong to one message
		return actEdit
	}
	switch c {
	case '\r', '\n':
		return actEnter
	case 0x03:
		return actInterrupt
	case 0x04:
		if len(e.clusters) == 0 {
			return actEnd
		}
		e.erase(e.cursor, e.cursor+1)
	case 0x7f, 0x08:
		e.erase(e.cursor-1, e.cursor)
	case 0x01:
		e.cursor = 0
	case 0x05:
		e.cursor = len(e.clusters)
	case 0x02:
		e.cursor = max(e.cursor-1, 0)
	case 0x06:
		e.cursor = min(e.cursor+1, len(e.clusters))
	case 0x15: // ctrl-U
		e.erase(0, e.cursor)
	case 0x0b: // ctrl-K
		e.erase(e.cursor, len(e.clusters))
	case 0x17: // ctrl-W
		from := e.cursor
		for from > 0 && strings.TrimSpace(e.clusters[from-1]) == "" {
			from--
		}
		for from > 0 && strings.TrimSpace(e.clusters[from-1]) != "" {
			from--
		}
		e.erase(from, e.cursor)
	case 0x0c:
		return actRedraw
	case '\t':
		e.insert(" ")
	default:
		return actNone
	}
	return actEdit
}

// escape handles a key that sends a sequence. Unknown ones are swallowed whole.
func (e *editor) escape(b []byte) (int, action) {
	if bytes.HasPrefix(b, []byte(pasteBegin)) {
		e.pasting = true
		return len(pasteBegin), actNone
	}
	if bytes.HasPrefix(b, []byte(pasteEnd)) {
		e.pasting = false
		return len(pasteEnd), actNone
	}
	if len(b) == 1 {
		return 0, actNone
	}
	if b[1] != '[' && b[1] != 'O' {
		return 2, actNone
	}
	for i := 2; i < len(b); i++ {
		if b[i] >= 0x40 && b[i] <= 0x7e {
			return i + 1, e.cursorKey(string(b[2 : i+1]))
		}
		const longest = 32 // no key is longer; what is, is rubbish
		if i > longest {
			return i, actNone
		}
	}
	return 0, actNone
}

func (e *editor) cursorKey(k string) action {
	switch k {
	case "D":
		e.cursor = max(e.cursor-1, 0)
	case "C":
		e.cursor = min(e.cursor+1, len(e.clusters))
	case "H", "1~", "7~":
		e.cursor = 0
	case "F", "4~", "8~":
		e.cursor = len(e.clusters)
	case "3~":
		e.erase(e.cursor, e.cursor+1)
	default:
		return actNone
	}
	return actEdit
}

// insert puts text at the cursor. Graphemes are found anew over the whole line, since what is inserted may join with
// what stands before it.
func (e *editor) insert(s string) {
	before := strings.Join(e.clusters[:e.cursor], "") + s
	after := strings.Join(e.clusters[e.cursor:], "")
	left := graphemes(before)
	if len(left) > maxEdited {
		left = left[:maxEdited]
	}
	e.clusters = append(left, graphemes(after)...)
	e.cursor = len(left)
}

func (e *editor) erase(from, to int) {
	from, to = max(from, 0), min(to, len(e.clusters))
	if from >= to {
		return
	}
	e.clusters = append(append([]string{}, e.clusters[:from]...), e.clusters[to:]...)
	e.cursor = from
}

func (e *editor) empty() bool { return len(e.clusters) == 0 }

// view gives the part of the line that fits into so many cells, and the cell of the cursor in it.
func (e *editor) view(cells int) (line string, cursor int) {
	shown := make([]string, len(e.clusters))
	widths := make([]int, len(e.clusters))
	for i, c := range e.clusters {
		if c == "\n" || c == "\r\n" {
			c = "⏎"
		}
		shown[i], widths[i] = c, ansi.StringWidth(c)
	}
	start, used := e.cursor, 0
	for start > 0 && used+widths[start-1] < cells { // one cell is left for the cursor
		start--
		used += widths[start]
	}
	cursor = used
	end := e.cursor
	for end < len(shown) && used+widths[end] < cells {
		used += widths[end]
		end++
	}
	return strings.Join(shown[start:end], ""), cursor
}

func graphemes(s string) []string {
	var out []string
	state := -1
	for s != "" {
		var c string
		c, s, _, state = uniseg.FirstGraphemeClusterInString(s, state)
		out = append(out, c)
	}
	return out
}
