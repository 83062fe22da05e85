package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
)

const (
	// screenful is how much history chat begins with when the height of the terminal is not known.
	screenful = 20
	// typingIdle is how long after the last key the other side is told that nobody types any more.
	typingIdle = 4 * time.Second
	// typingStale hides a notice that was never taken back: the other side lost its connection.
	typingStale = 10 * time.Second
)

// screen shows a conversation as it goes on: on a terminal, as lines, or as JSON. It belongs to the goroutine of the chat.
type screen interface {
	// message shows a message that is new to this screen.
	message(messageView)
	// state shows that an own message shown before has reached another state.
	state(messageView)
	// typing shows that the other side types, or stopped.
	typing(name string, on bool)
	// tell shows what happened to a network, to the own name on one, or to a mailbox.
	tell(eventView, string)
	// refused shows that a line could not be sent.
	refused(error)
}

// input is what the person, or the pipe, does.
type input struct {
	line    string
	isLine  bool
	typed   bool  // a key was pressed and the line is not empty
	cleared bool  // the line became empty
	err     error // the end: nil with end set is a clean one
	end     bool
	keys    []byte // raw bytes of a terminal; the screen makes the other fields of them
}

// chatOptions change what the end of the input means; the zero value is "hima chat".
type chatOptions struct {
	// awaitReplies keeps the chat open after the end of the input until as many messages came in as went out.
	awaitReplies time.Duration
	// opening is sent if the input ended without a line.
	opening string
}

// chat is one open conversation. Everything in it belongs to the goroutine that runs loop; the watch and the input send
// to it over channels.
type chat struct {
	a       *app
	node    *control.Client
	options chatOptions

	who          string // what to call the other side in requests
	conversation string
	name         string // what to call them on the screen
	group        bool   // many on the other side

	screen  screen
	shown   map[string]bool        // IDs on the screen
	own     map[string]*pb.Message // own messages whose state may still change
	unread  string                 // newest message shown and not yet marked
	sent    int
	replies int
	failed  error // the first line that could not be sent

	typing     bool // the other side was told that we type
	typingOff  <-chan time.Time
	typingGone <-chan time.Time
}

func (a *app) chatCommand() *cobra.Command {
	return a.command(spec{
		use: "chat WHO", id: "chat", min: 1, max: 1, who: true,
		example: "  hima chat bob\n  echo hello | hima chat bob\n  hima --json chat bob < orders | ./bot",
		run: func(ctx context.Context, args []string) error {
			node, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer node.Close()
			return a.chat(ctx, node, args[0], chatOptions{})
		},
	})
}

func (a *app) chat(ctx context.Context, node *control.Client, who string, o chatOptions) error {
	ctx, stop := context.WithCancel(ctx)
	c := &chat{a: a, node: node, options: o, who: who, shown: map[string]bool{}, own: map[string]*pb.Message{}}
	events := make(chan *pb.Event, 256) // a burst is shown before it is marked as read
	watchEnd := make(chan error, 1)
	go func() {
		err := node.Watch(ctx, control.WatchOptions{FromNow: true}, func(e *pb.Event) error {
			select {
			case events <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		watchEnd <- err
	}()
	ended := false
	defer func() {
		stop()
		if !ended {
			<-watchEnd
		}
	}()
	// The watch is open before the history is read: what comes in between is seen twice and shown once.
	select {
	case <-events:
	case err := <-watchEnd:
		ended = true
		return err
	}
	inputs, closeInput, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer closeInput()
	err = c.loop(ctx, events, watchEnd, inputs, &ended)
	if c.typing {
		c.tellTyping(context.WithoutCancel(ctx), false)
	}
	return err
}

// open shows the newest history and starts reading the input.
func (c *chat) open(ctx context.Context) (<-chan input, func(), error) {
	limit := screenful
	if h := c.a.height(); h > 4 {
		limit = h - 2
	}
	resp, err := c.node.History(ctx, &pb.HistoryRequest{Who: c.who, Limit: int32(limit)})
	if err != nil {
		return nil, nil, err
	}
	c.conversation = resp.GetConversation()
	c.name = c.who
	if err := c.findName(ctx); err != nil {
		return nil, nil, err
	}
	var inputs <-chan input
	closeInput := func() {}
	switch {
	case c.a.flags.json:
		c.screen = &jsonScreen{a: c.a, conversation: c.conversation}
		inputs = readLines(ctx, c.a.in)
	case c.a.inTerminal && c.a.outTerminal:
		t, in, err := c.a.newTerminalScreen(ctx, c.name)
		if err != nil {
			return nil, nil, err
		}
		c.screen, inputs, closeInput = t, in, t.Close
	default:
		c.screen = &lineScreen{a: c.a}
		inputs = readLines(ctx, c.a.in)
	}
	for _, m := range resp.GetMessages() {
		c.show(m)
	}
	c.markRead(ctx)
	return inputs, closeInput, nil
}

// findName looks up what the conversation list calls the other side, and pins the account: a remark may change while
// the conversation is open.
func (c *chat) findName(ctx context.Context) error {
	resp, err := c.node.Conversations(ctx, &pb.ConversationsRequest{})
	if err != nil {
		return err
	}
	for _, conv := range resp.GetConversations() {
		if conv.GetId() != c.conversation {
			continue
		}
		v := conversationOf(conv)
		if v.Kind == "self" {
			c.name = c.a.t("conversations.self")
			return nil
		}
		c.name = firstOf(v.Name, c.name)
		c.who = firstOf(conv.GetPeer(), c.who)
		if c.group = v.Kind == kindGroup; c.group {
			c.who = conv.GetId()
		}
	}
	return nil
}

func (c *chat) loop(ctx context.Context, events <-chan *pb.Event, watchEnd <-chan error, inputs <-chan input, ended *bool) error {
	var giveUp <-chan time.Time // set at the end of the input, while replies are waited for
	for {
		if len(events) == 0 {
			c.markRead(ctx)
		}
		select {
		case e := <-events:
			c.event(e)
			if giveUp != nil && c.replies >= c.sent {
				return c.failed
			}
		case err := <-watchEnd:
			*ended = true
			return err
		case <-c.typingOff:
			c.tellTyping(ctx, false)
		case <-c.typingGone:
			c.typingGone = nil
			c.screen.typing(c.name, false)
		case <-giveUp:
			return fail(control.Unavailable, "error.no_reply")
		case in := <-inputs:
			if !c.input(ctx, &in) {
				continue
			}
			if in.err != nil {
				return in.err
			}
			if c.sent == 0 && c.failed == nil && c.options.opening != "" {
				c.send(ctx, c.options.opening)
			}
			if c.options.awaitReplies == 0 || c.failed != nil || c.replies >= c.sent {
				return c.failed
			}
			giveUp, inputs = time.After(c.options.awaitReplies), nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// input handles what was typed and reports whether it was the end; in then says how it ended.
func (c *chat) input(ctx context.Context, in *input) (ended bool) {
	if t, ok := c.screen.(*terminalScreen); ok && in.keys != nil {
		keys := in.keys
		t.apply(keys, func(made input) {
			if !ended && c.input(ctx, &made) {
				*in, ended = made, true
			}
		})
		return ended
	}
	switch {
	case in.end:
		return true
	case in.isLine:
		c.tellTyping(ctx, false)
		if in.line != "" {
			c.send(ctx, in.line)
		}
	case in.cleared:
		c.tellTyping(ctx, false)
	case in.typed:
		c.tellTyping(ctx, true)
	}
	return false
}

// send writes one line. It returns when the message is durable, so that the end of the input needs no further waiting.
func (c *chat) send(ctx context.Context, line string) {
	var m *pb.Message
	err := checkArguments([]string{line})
	if err == nil {
		m, err = sendOnce(ctx, c.node, c.who, line)
	}
	if err != nil {
		c.screen.refused(err)
		if c.failed == nil {
			c.failed = &silent{exitCode(err)}
		}
		return
	}
	c.sent++
	c.show(m)
}

// show puts a message on the screen once.
func (c *chat) show(m *pb.Message) {
	if c.shown[m.GetId()] {
		return
	}
	c.shown[m.GetId()] = true
	c.screen.message(messageOf(m))
	switch {
	case m.GetOwn():
		c.own[m.GetId()] = m
	case m.GetState() != stateRead:
		c.unread = m.GetId()
	}
}

// event applies one event of the node.
func (c *chat) event(e *pb.Event) {
	if said := c.told(eventOf(e)); said != "" {
		c.screen.tell(eventOf(e), said)
		return
	}
	if e.GetConversation() != c.conversation {
		return // the watch is of everything: networks belong to no conversation
	}
	m := e.GetMessage()
	switch {
	case e.GetType() == eventTyping:
		c.typingGone = nil
		if e.GetOn() {
			c.typingGone = time.After(typingStale)
		}
		c.screen.typing(firstOf(name(e.GetAccountName()), c.name), e.GetOn())
	case m == nil:
	case e.GetType() == eventMessage && !c.shown[m.GetId()]:
		if !m.GetOwn() {
			c.typingGone = nil
			c.screen.typing(c.name, false)
			c.replies++
		}
		c.show(m)
	default:
		c.changeStates(e)
	}
}

// told is what an event tells that is no part of this conversation and yet should not wait: what happened to a network, to
// an invitation or an application, and what is wrong in this group.
func (c *chat) told(v eventView) string {
	if s := c.a.networkEvent(v); s != "" {
		return s
	}
	if v.Type == eventGroup && (v.Conversation != c.conversation || v.Message != nil) {
		return "" // of another group, or a line of the history, which comes as a message
	}
	return c.a.groupEvent(v)
}

// changeStates updates every own message on the screen that the event speaks of.
func (c *chat) changeStates(e *pb.Event) {
	for id, m := range c.own {
		s := newState(e, m, m.GetState())
		worth := s != ""
		if worth {
			m.State = s
		}
		if c.group {
			worth = c.recount(e, m) || worth
		}
		if !worth {
			continue
		}
		c.screen.state(messageOf(m))
		if m.GetReadBy() >= m.GetMembers() && m.GetState() == stateRead || rank(m.GetState()) == 0 {
			delete(c.own, id)
		}
	}
}

// recount takes the numbers of members from an event and tells whether that is worth a line: when everybody has a message,
// and when everybody read it. JSON tells of each.
func (c *chat) recount(e *pb.Event, m *pb.Message) (worth bool) {
	told := e.GetMessage()
	if e.GetType() != eventState || !told.GetOwn() || told.GetDevice() != m.GetDevice() || told.GetSeq() < m.GetSeq() {
		return false
	}
	// Whoever has a message has those before it.
	delivered, read := max(m.GetDeliveredTo(), told.GetDeliveredTo()), max(m.GetReadBy(), told.GetReadBy())
	if m.GetMembers() == 0 || delivered == m.GetDeliveredTo() && read == m.GetReadBy() {
		return false
	}
	worth = c.a.flags.json || delivered != m.GetDeliveredTo() && delivered >= m.GetMembers() || read != m.GetReadBy() && read >= m.GetMembers()
	m.DeliveredTo, m.ReadBy = min(delivered, m.GetMembers()), min(read, m.GetMembers())
	return worth
}

// markRead tells the node what has been on the screen. A failure is told by the next call that matters.
func (c *chat) markRead(ctx context.Context) {
	if c.unread == "" {
		return
	}
	_, err := c.node.MarkRead(ctx, &pb.MarkReadRequest{Who: c.who, Until: c.unread})
	if err == nil || !errors.Is(err, control.Unavailable) {
		c.unread = ""
	}
}

// tellTyping lets the other side know, at most once per change.
func (c *chat) tellTyping(ctx context.Context, on bool) {
	c.typingOff = nil
	if on {
		c.typingOff = time.After(typingIdle)
	}
	if on == c.typing {
		return
	}
	c.typing = on
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, _ = c.node.SetTyping(ctx, &pb.SetTypingRequest{Who: c.who, On: on}) // a courtesy: nothing depends on it
}
