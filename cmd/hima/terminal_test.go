package main

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/stretchr/testify/require"
)

// grid is a small terminal: it understands what terminalScreen writes and nothing else.
type grid struct {
	t       *testing.T
	columns int
	rows    []string // one string a row; wide characters count by their cells
	x, y    int
}

func (g *grid) Write(b []byte) (int, error) {
	s := string(b)
	for s != "" {
		switch {
		case s[0] == '\r':
			g.x, s = 0, s[1:]
		case s[0] == '\n':
			g.y, s = g.y+1, s[1:]
		case strings.HasPrefix(s, "\x1b["):
			end := strings.IndexFunc(s[2:], func(r rune) bool { return r >= 0x40 }) + 2
			g.sequence(s[2:end], s[end])
			s = s[end+1:]
		default:
			end := strings.IndexAny(s, "\r\n\x1b")
			if end < 0 {
				end = len(s)
			}
			g.put(s[:end])
			s = s[end:]
		}
	}
	return len(b), nil
}

func (g *grid) sequence(arg string, final byte) {
	n, _ := strconv.Atoi(arg)
	switch final {
	case 'A':
		g.y -= n
	case 'B':
		g.y += n
	case 'C':
		g.x += n
	case 'K':
		g.line()
		g.rows[g.y] = ansi.Truncate(g.rows[g.y], g.x, "")
	case 'h', 'l', 'm':
	default:
		g.t.Fatalf("unknown sequence %q%c", arg, final)
	}
	require.GreaterOrEqual(g.t, g.y, 0, "above the screen")
}

func (g *grid) line() {
	for len(g.rows) <= g.y {
		g.rows = append(g.rows, "")
	}
}

func (g *grid) put(s string) {
	g.line()
	row := g.rows[g.y]
	if pad := g.x - ansi.StringWidth(row); pad > 0 {
		row += strings.Repeat(" ", pad)
	}
	g.x += ansi.StringWidth(s)
	require.LessOrEqual(g.t, g.x, g.columns, "the terminal would wrap %q", s)
	g.rows[g.y] = ansi.Truncate(row, g.x-ansi.StringWidth(s), "") + s + ansi.TruncateLeft(row, g.x, "")
}

func (g *grid) text() string { return strings.TrimRight(strings.Join(g.rows, "\n"), "\n ") }

func newTestScreen(t *testing.T, columns, rows int) (*terminalScreen, *grid) {
	g := &grid{t: t, columns: columns}
	a := testApp(t)
	a.out = g
	s := &terminalScreen{a: a, prompt: "bob ›", size: func() (int, int) { return columns, rows }}
	return s, g
}

func ownMessage(id, body, state string) messageView {
	return messageView{ID: id, Kind: "text", Text: body, Own: true, State: state, Author: "hima1a", Peer: "hima1b", at: time.Now()}
}

// TestStateChangesInPlace: an own message shows its newest state where it stands, with other lines below it and a line
// being typed.
func TestStateChangesInPlace(t *testing.T) {
	for _, columns := range []int{30, 40, 80, 140} {
		t.Run(fmt.Sprint(columns), func(t *testing.T) {
			s, g := newTestScreen(t, columns, 24)
			s.message(ownMessage("1", "hello", "pending"))
			s.message(ownMessage("2", "第二条消息，长得需要换行，真的很长很长很长", "pending"))
			s.message(messageView{ID: "3", Kind: "text", Text: "answer", AuthorName: "小王", at: time.Now()})
			s.apply([]byte("typing 中文"), func(input) {})
			s.state(ownMessage("1", "hello", "delivered"))
			s.state(ownMessage("2", "第二条消息，长得需要换行，真的很长很长很长", "read"))
			got := g.text()
			require.Equal(t, 1, strings.Count(got, "hello"), got)
			require.Contains(t, got, "hello  · delivered")
			require.NotContains(t, got, "hello  · pending")
			require.Contains(t, got, "小王  answer")
			require.True(t, strings.HasSuffix(got, "typing 中文"), got)
			require.Equal(t, ansi.StringWidth("bob › typing 中文"), g.x, "the cursor stands behind what was typed")
		})
	}
}

// TestStateOfWhatScrolledAway gets a line of its own.
func TestStateOfWhatScrolledAway(t *testing.T) {
	s, g := newTestScreen(t, 40, 5)
	s.message(ownMessage("1", "first", "pending"))
	for i := range 6 {
		s.message(ownMessage(fmt.Sprint("x", i), "filler", "pending"))
	}
	s.state(ownMessage("1", "first", "delivered"))
	require.Contains(t, g.text(), "first  · pending")
	require.Contains(t, g.text(), "delivered: first")
}

func TestTypingNotice(t *testing.T) {
	s, g := newTestScreen(t, 60, 24)
	s.apply([]byte("hi"), func(input) {})
	s.typing("bob", true)
	require.Equal(t, "bob is typing… bob › hi", g.text())
	s.typing("bob", false)
	require.Equal(t, "bob › hi", g.text())
}
