package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"golang.org/x/term"

	"hima/internal/text"
)

// terminalScreen shows a chat on a terminal: messages scroll up, the line being typed stays at the bottom, and the state
// of an own message changes where it stands. The screen belongs to the goroutine of the chat, which also gets every key:
// keys arrive as input whose act the screen applies itself (see apply).
type terminalScreen struct {
	a      *app
	edit   editor
	prompt string
	notice string // in front of the prompt: somebody types
	blocks []block
	before *term.State
	size   func() (columns, rows int)
}

// block is something printed that may be printed again in place.
type block struct {
	id   string // message; empty: never changes
	rows int
}

// maxBlocks bounds how far back states are changed in place; no screen is higher.
const maxBlocks = 400

func (a *app) newTerminalScreen(ctx context.Context, name string) (*terminalScreen, <-chan input, error) {
	fd := int(a.in.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, nil, fmt.Errorf("preparing terminal: %w", err)
	}
	s := &terminalScreen{a: a, prompt: a.dim(text.OneLine(name, 24) + " ›"), before: before}
	s.size = func() (int, int) {
		w, h, err := term.GetSize(fd)
		if err != nil || w < 2 || h < 2 {
			return 80, 24
		}
		return w, h
	}
	s.write("\x1b[?2004h") // a paste says where it begins and ends
	s.line(a.dim(a.t("chat.intro", "Name", name)))
	out := make(chan input)
	go s.read(ctx, a.in, out)
	return s, out, nil
}

// Close gives the terminal back as it was.
func (s *terminalScreen) Close() {
	s.write("\r\x1b[K\x1b[?2004l")
	_ = term.Restore(int(s.a.in.Fd()), s.before)
}

func (s *terminalScreen) write(text string) { _, _ = io.WriteString(s.a.out, text) }

// read carries bytes from the terminal to the goroutine of the chat, which edits and draws; it ends with ctx, or with the
// process if a read blocks.
func (s *terminalScreen) read(ctx context.Context, r io.Reader, out chan<- input) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		in := input{keys: append([]byte(nil), buf[:n]...)}
		if err != nil {
			in = input{end: true}
		}
		select {
		case out <- in:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// apply edits the line and gives the chat what came of it.
func (s *terminalScreen) apply(keys []byte, do func(input)) {
	s.edit.feed(keys, func(act action, line string) {
		switch act {
		case actEnter:
			do(input{line: line, isLine: true})
		case actEnd:
			do(input{end: true})
		case actInterrupt:
			do(input{end: true, err: &silent{exitInterrupted}})
		case actRedraw:
			s.write("\x1b[2J\x1b[H")
			s.blocks = nil
		case actEdit:
			do(input{typed: !s.edit.empty(), cleared: s.edit.empty()})
		}
	})
	s.draw()
}

// draw writes the bottom line.
func (s *terminalScreen) draw() {
	columns, _ := s.size()
	head := s.prompt + " "
	if s.notice != "" {
		head = s.notice + " " + head
	}
	if ansi.StringWidth(head) > columns/2 {
		head = "› "
	}
	width := ansi.StringWidth(head)
	line, cursor := s.edit.view(columns - width)
	s.write("\r\x1b[K" + head + line + fmt.Sprintf("\r\x1b[%dC", width+cursor))
}

// line prints something above the bottom line.
func (s *terminalScreen) line(text string) { s.print("", text) }

func (s *terminalScreen) print(id, body string) {
	rows := s.wrap(body)
	s.write("\r\x1b[K" + strings.Join(rows, "\r\n") + "\r\n")
	s.blocks = append(s.blocks, block{id: id, rows: len(rows)})
	if len(s.blocks) > maxBlocks {
		s.blocks = append([]block(nil), s.blocks[len(s.blocks)-maxBlocks/2:]...)
	}
	s.draw()
}

// wrap cuts a text into rows that the terminal will not wrap itself, so that rows can be counted.
func (s *terminalScreen) wrap(body string) []string {
	columns, _ := s.size()
	limit := max(columns-1, 1)
	var rows []string
	for line := range strings.SplitSeq(body, "\n") {
		// Chinese has no blanks to break at: a wrap at words would leave the rest of the row empty.
		wide := ansi.StringWidth(line) > utf8.RuneCountInString(ansi.Strip(line))
		if wide {
			line = ansi.Hardwrap(line, limit, true)
		} else {
			line = ansi.Wrap(line, limit, "")
		}
		rows = append(rows, strings.Split(line, "\n")...)
	}
	return rows
}

func (s *terminalScreen) message(m messageView) {
	if m.Own {
		s.print(m.ID, s.a.chatEntry(m, time.Now()))
		return
	}
	s.line(s.a.chatEntry(m, time.Now()))
}

// state prints an own message again where it stands. If that place scrolled away, or the message needs another number of
// rows now, the new state gets a line of its own.
func (s *terminalScreen) state(m messageView) {
	_, height := s.size()
	up := 0
	for i := len(s.blocks) - 1; i >= 0; i-- {
		up += s.blocks[i].rows
		if up >= height {
			break
		}
		if s.blocks[i].id != m.ID {
			continue
		}
		rows := s.wrap(s.a.chatEntry(m, time.Now()))
		if len(rows) != s.blocks[i].rows {
			break
		}
		var b strings.Builder
		fmt.Fprintf(&b, "\r\x1b[%dA", up)
		for _, r := range rows {
			b.WriteString("\r\x1b[K" + r + "\n")
		}
		if down := up - len(rows); down > 0 {
			fmt.Fprintf(&b, "\x1b[%dB", down)
		}
		s.write(b.String())
		s.draw()
		return
	}
	s.line(s.a.dim(s.a.t("chat.state", "State", s.a.messageState(m), "Text", text.OneLine(m.Text, quoteCells))))
}

func (s *terminalScreen) typing(name string, on bool) {
	notice := ""
	if on {
		notice = s.a.dim(s.a.t("chat.typing", "Name", text.OneLine(name, 24)))
	}
	if notice != s.notice {
		s.notice = notice
		s.draw()
	}
}

func (s *terminalScreen) tell(_ eventView, said string) { s.line(s.a.dim("— " + said)) }

func (s *terminalScreen) refused(err error) {
	s.line(s.a.yellow("hima: " + s.a.t("cli.error") + " " + s.a.describe(err).Message))
}
