package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"hima/internal/text"
)

// height is the number of rows of the terminal; 0 if results do not go to one.
func (a *app) height() int {
	f, ok := a.out.(*os.File)
	if !ok || !a.outTerminal {
		return 0
	}
	_, h, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return h
}

// readLines delivers the lines of a pipe and then its end. The goroutine ends with the input or with ctx; a read that
// blocks then is let go of, since the program is about to end.
func readLines(ctx context.Context, r io.Reader) <-chan input {
	out := make(chan input)
	deliver := func(in input) bool {
		select {
		case out <- in:
			return true
		case <-ctx.Done():
			return false
		}
	}
	go func() {
		b := bufio.NewReaderSize(r, 64<<10)
		for {
			line, err := b.ReadString('\n')
			line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
			if (err == nil || line != "") && !deliver(input{line: line, isLine: true}) {
				return
			}
			if err != nil {
				if err == io.EOF {
					err = nil
				}
				deliver(input{end: true, err: err})
				return
			}
		}
	}()
	return out
}

// lineScreen writes one line for everything, for pipes.
type lineScreen struct{ a *app }

func (s *lineScreen) message(m messageView) { s.a.printf("%s\n", s.a.chatEntry(m, time.Now())) }

func (s *lineScreen) state(m messageView) {
	s.a.printf("%s\n", s.a.t("chat.state", "State", s.a.messageState(m), "Text", text.OneLine(m.Text, quoteCells)))
}

func (s *lineScreen) typing(name string, on bool) {
	if on {
		s.a.printf("%s\n", s.a.t("chat.typing", "Name", name))
	}
}

// tell writes to stderr: a script that reads the chat asked for what people say.
func (s *lineScreen) tell(_ eventView, said string) {
	if !s.a.flags.quiet {
		fmt.Fprintln(s.a.errOut, said)
	}
}

func (s *lineScreen) refused(err error) { s.a.report(err) }

// quoteCells is how much of a message is repeated to say which one is meant.
const quoteCells = 40

// chatEntry is one message in a chat: shorter than in the history, since IDs are of no use while talking.
func (a *app) chatEntry(v messageView, now time.Time) string {
	who := firstOf(v.AuthorName, shortAccount(v.Author))
	if v.Own {
		who = a.t("word.me")
	}
	head := a.dim(localTime(v.at, now)) + "  "
	if v.Kind != "hole" {
		head += a.who(who, v.Own) + "  "
	}
	return head + strings.ReplaceAll(a.messageLine(v), "\n", "\n    ") + a.marks(v)
}

// jsonScreen writes events in the shape of "watch --json"; those that this program makes itself have seq 0.
type jsonScreen struct {
	a            *app
	conversation string
}

func (s *jsonScreen) event(v eventView) {
	v.Conversation = s.conversation
	_ = s.a.emit(v) // a closed pipe ends the program by its signal
}

func (s *jsonScreen) message(m messageView) {
	s.event(eventView{Type: eventMessage, Time: m.Time, Account: m.Author, Message: &m})
}

func (s *jsonScreen) state(m messageView) {
	s.event(eventView{Type: eventState, Time: stamp(time.Now().UnixMilli()), Account: m.Author, Message: &m, MessageIDs: []string{m.ID}})
}

func (s *jsonScreen) typing(_ string, on bool) {
	s.event(eventView{Type: eventTyping, Time: stamp(time.Now().UnixMilli()), On: on})
}

func (s *jsonScreen) tell(v eventView, _ string) {
	v.Seq = 0
	_ = s.a.emit(v)
}

func (s *jsonScreen) refused(err error) { s.a.report(err) }
