package main

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/text"
)

// maxTyped bounds what is read from stdin for one message. The node's own limit is lower and its error names it.
const maxTyped = 1 << 20

// States of an own message, in the order they are reached.
const (
	statePending   = "pending"
	stateSent      = "sent"
	stateDelivered = "delivered"
	stateRead      = "read"
	stateNotTaken  = "not_taken"
	stateCancelled = "cancelled"
	stateUnknown   = "unknown"
)

// rank orders the states; 0 for those that lead nowhere.
func rank(state string) int {
	switch state {
	case statePending, stateUnknown:
		return 1
	case stateSent:
		return 2
	case stateDelivered:
		return 3
	case stateRead:
		return 4
	}
	return 0
}

func (a *app) sendCommand() *cobra.Command {
	var wait string
	var timeout time.Duration
	c := a.command(spec{
		use: "send WHO [TEXT…]", id: "send", min: 1, max: -1, who: true,
		example: "  hima send bob hello\n  echo hello | hima send bob -\n  hima send bob hello --wait delivered --timeout 1m\n  hima send self buy milk",
		run: func(ctx context.Context, args []string) error {
			if rank(wait) == 0 {
				return usage("usage.wait", "Value", text.OneLine(wait, 40))
			}
			if timeout < 0 {
				return usage("usage.negative", "Flag", "--timeout")
			}
			body, err := a.messageText(args[1:])
			if err != nil {
				return err
			}
			return a.send(ctx, args[0], body, wait, timeout)
		},
	})
	c.Flags().StringVar(&wait, "wait", statePending, "flag.send.wait")
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "flag.send.timeout")
	_ = c.RegisterFlagCompletionFunc("wait", cobra.FixedCompletions(
		[]string{statePending, stateSent, stateDelivered, stateRead}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// messageText takes the text from the arguments, or from stdin for "-" or when stdin is not a terminal.
func (a *app) messageText(args []string) (string, error) {
	switch {
	case len(args) == 1 && args[0] == "-", len(args) == 0 && !a.inTerminal:
		s, err := a.readAll("-", maxTyped)
		if err != nil {
			return "", err
		}
		s = strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\r")
		if s == "" {
			return "", usage("usage.empty_message")
		}
		return s, checkArguments([]string{s})
	case len(args) == 0:
		return "", usage("usage.missing", "Usage", "hima send WHO TEXT…").withHint("hint.help")
	}
	s := strings.Join(args, " ")
	if s == "" {
		return "", usage("usage.empty_message")
	}
	return s, nil
}

func (a *app) send(ctx context.Context, who, body, wait string, timeout time.Duration) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	if wait == statePending {
		m, err := sendOnce(ctx, node, who, body)
		if err != nil {
			return err
		}
		return a.showSent(m)
	}
	return a.sendAndWait(ctx, node, who, body, wait, timeout)
}

// sendOnce sends under a key of its own, so that a node which went away in the middle can be asked again without the
// message being written twice.
func sendOnce(ctx context.Context, node *control.Client, who, body string) (*pb.Message, error) {
	req := &pb.SendRequest{Who: who, Text: body, IdempotencyKey: rand.Text()}
	resp, err := node.Send(ctx, req)
	if !errors.Is(err, control.Unavailable) {
		return resp.GetMessage(), err
	}
	again, second := node.Send(ctx, req)
	if errors.Is(second, control.NotRunning) {
		return nil, err // "not running" says that nothing was written; here that is not known
	}
	return again.GetMessage(), second
}

// sendAndWait follows the message until it is in the state asked for. The watch is open before the message exists, so
// that no change of state can be missed.
func (a *app) sendAndWait(ctx context.Context, node *control.Client, who, body, wait string, timeout time.Duration) error {
	var (
		m        *pb.Message
		state    string
		sendErr  error
		deadline *time.Timer
	)
	watchCtx, stop := context.WithCancel(ctx)
	defer stop()
	errReached := errors.New("reached")
	err := node.Watch(watchCtx, control.WatchOptions{FromNow: true}, func(e *pb.Event) error {
		if m == nil {
			if e.GetType() != eventReady {
				return nil
			}
			if m, sendErr = sendOnce(ctx, node, who, body); sendErr != nil {
				return sendErr
			}
			state = m.GetState()
			deadline = time.AfterFunc(timeout, stop)
		}
		if s := newState(e, m, state); s != "" {
			state = s
			m.Members, m.DeliveredTo, m.ReadBy = told(e, m)
		}
		if rank(state) >= rank(wait) || rank(state) == 0 {
			return errReached
		}
		return nil
	})
	if deadline != nil {
		deadline.Stop()
	}
	if m == nil {
		return err
	}
	m.State = state
	if showErr := a.showSent(m); showErr != nil {
		return showErr
	}
	switch {
	case rank(state) == 0:
		f := fail(control.Denied, "error.not_taken", "ID", shortMessage(m.GetId()))
		f.exit = exitFailed
		return f
	case errors.Is(err, errReached):
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case watchCtx.Err() != nil:
		f := fail(control.Unavailable, "error.not_yet", "Wanted", a.word("state", wait), "Timeout", duration(timeout),
			"State", a.word("state", state)).withHint("hint.not_yet")
		f.exit = exitNotYet
		return f
	}
	return err
}

// told is to how many members a message goes and who of them has and read it, as an event says.
func told(e *pb.Event, m *pb.Message) (members, delivered, read int32) {
	t := e.GetMessage()
	return max(m.GetMembers(), t.GetMembers()), max(m.GetDeliveredTo(), t.GetDeliveredTo()), max(m.GetReadBy(), t.GetReadBy())
}

// newState is the state that event e tells of message m; "" if it says nothing new about it. A later event of the same
// feed covers all messages before it, and an event never takes a state back.
func newState(e *pb.Event, m *pb.Message, now string) string {
	told := e.GetMessage()
	if told == nil || !told.GetOwn() {
		return ""
	}
	named := told.GetId() == m.GetId()
	for _, id := range e.GetMessageIds() {
		named = named || id == m.GetId()
	}
	covered := e.GetType() == eventState && told.GetConversation() == m.GetConversation() &&
		told.GetDevice() == m.GetDevice() && told.GetSeq() >= m.GetSeq() && rank(told.GetState()) > 0
	if !named && !covered {
		return ""
	}
	s := told.GetState()
	if rank(s) == 0 || rank(s) > rank(now) {
		return s
	}
	return ""
}

func (a *app) showSent(m *pb.Message) error {
	v := messageOf(m)
	if a.flags.json {
		return a.emit(v)
	}
	if !a.flags.quiet {
		a.printf("%s  %s\n", v.ID, a.messageState(v))
	}
	return nil
}
