package mailbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/wire/pb"
)

// Client brings items to mailboxes and fetches them. It keeps one stream per mailbox while there is something to say.
type Client struct {
	cfg ClientConfig
	log *slog.Logger

	mu     sync.Mutex
	links  map[identity.DeviceID]*link // guarded by mu; living ones, and those being opened
	closed bool                        // guarded by mu
	wg     sync.WaitGroup              // readers of streams
}

// NewClient checks the configuration. It starts nothing; streams are opened when they are needed.
func NewClient(c ClientConfig) (*Client, error) {
	if c.Node == nil {
		return nil, errors.New("mailbox: the client needs a node")
	}
	d := DefaultClientLimits()
	c.Limits.Answer = cmp.Or(c.Limits.Answer, d.Answer)
	c.Limits.Idle = cmp.Or(c.Limits.Idle, d.Idle)
	c.Limits.Ping = cmp.Or(c.Limits.Ping, d.Ping)
	c.Limits.Window = cmp.Or(c.Limits.Window, d.Window)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: c, log: c.Logger, links: map[identity.DeviceID]*link{}}, nil
}

// Close ends all streams and waits for those who read them; calls under way return ErrClosed.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	var all []*link
	for _, l := range c.links {
		all = append(all, l)
	}
	c.mu.Unlock()
	for _, l := range all {
		l.fail(ErrClosed)
	}
	c.wg.Wait()
	return nil
}

// Connected reports whether a stream to a mailbox is open.
func (c *Client) Connected(dev identity.DeviceID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.links[dev]
	return l != nil && l.alive()
}

// Terms asks for the conditions of a mailbox.
func (c *Client) Terms(ctx context.Context, ref Ref) (Terms, error) {
	r, err := c.ask(ctx, ref, &pb.MailboxRequest{Of: &pb.MailboxRequest_Terms{Terms: &pb.MailboxTermsRequest{}}})
	if err != nil {
		return Terms{}, fmt.Errorf("asking for terms: %w", err)
	}
	return termsFromPB(r.Terms)
}

// OpenInbox makes an inbox, or changes its quota, and says what it holds.
func (c *Client) OpenInbox(ctx context.Context, ref Ref, in InboxConfig) (State, error) {
	r, err := c.ask(ctx, ref, &pb.MailboxRequest{Of: &pb.MailboxRequest_Open{Open: &pb.MailboxOpen{
		Secret: in.Secret.Bytes(), Kind: pb.MailboxOpen_Kind(in.Kind), QuotaBytes: in.Quota, Grant: in.Grant,
	}}})
	if err != nil {
		return State{}, fmt.Errorf("opening an inbox: %w", err)
	}
	return State{Bytes: r.GetState().GetUsedBytes(), Items: int(r.GetState().GetItems()), Quota: r.GetState().GetQuotaBytes()}, nil
}

// Deposit leaves an item and returns the receipt, which was checked against it. ErrBadReceipt: the mailbox lies.
func (c *Client) Deposit(ctx context.Context, ref Ref, d Deposit) (identity.Custody, error) {
	if len(d.Item) > maxItem {
		return identity.Custody{}, ErrTooLarge
	}
	m := &pb.MailboxDeposit{Inbox: d.Inbox.Bytes(), Item: d.Item, Work: d.Work}
	if !d.Secret.IsZero() {
		m.Secret = d.Secret.Bytes()
	}
	r, err := c.ask(ctx, ref, &pb.MailboxRequest{Of: &pb.MailboxRequest_Deposit{Deposit: m}})
	if err != nil {
		return identity.Custody{}, fmt.Errorf("leaving an item: %w", err)
	}
	return c.checkReceipt(ref, d, r.Custody)
}

// checkReceipt compares a receipt with what was left: only one that names this mailbox, this inbox and these bytes, and
// that still counts, is a receipt at all.
func (c *Client) checkReceipt(ref Ref, d Deposit, raw []byte) (identity.Custody, error) {
	bad := func(why string) (identity.Custody, error) {
		return identity.Custody{}, fmt.Errorf("%w: %s", ErrBadReceipt, why)
	}
	receipt, err := identity.ParseCustody(raw)
	switch {
	case err != nil:
		return bad(err.Error())
	case receipt.Mailbox != ref.Device:
		return bad("another node signed it")
	case receipt.Inbox != d.Inbox:
		return bad("it is about another inbox")
	case receipt.Item != identity.ItemHash(d.Item) || receipt.Size != len(d.Item):
		return bad("it is about another item")
	case !receipt.Until.After(receipt.Time) || !receipt.Until.After(c.cfg.Now()):
		return bad("it ended already")
	}
	return receipt, nil
}

// Fetch returns what lies in an inbox after a cursor, oldest first, as much as one answer holds.
func (c *Client) Fetch(ctx context.Context, ref Ref, secret identity.InboxSecret, after uint64, max int) (items []Item, more bool, err error) {
	r, err := c.ask(ctx, ref, &pb.MailboxRequest{Of: &pb.MailboxRequest_Fetch{Fetch: &pb.MailboxFetch{
		Secret: secret.Bytes(), After: after, Max: uint32(max),
	}}})
	if err != nil {
		return nil, false, fmt.Errorf("fetching items: %w", err)
	}
	items, err = itemsOf(r, after)
	return items, r.More && len(items) > 0, err
}

// itemsOf reads the items of an answer. Cursors that do not increase would let a mailbox keep its readers busy for ever.
func itemsOf(r *pb.MailboxReply, after uint64) (items []Item, err error) {
	for _, it := range r.Items {
		if it.Cursor <= after || len(it.Item) == 0 || len(it.Item) > maxItem {
			return nil, fmt.Errorf("reading items: %w", ErrProtocol)
		}
		after = it.Cursor
		items = append(items, Item{Cursor: it.Cursor, Bytes: it.Item, Until: time.UnixMilli(it.UntilMs)})
	}
	return items, nil
}

// Done says that items, by hash, are durable here and can be removed there.
func (c *Client) Done(ctx context.Context, ref Ref, secret identity.InboxSecret, items [][32]byte) error {
	for len(items) > 0 {
		n := min(len(items), maxDone)
		m := &pb.MailboxDone{Secret: secret.Bytes()}
		for _, h := range items[:n] {
			m.Items = append(m.Items, h[:])
		}
		if _, err := c.ask(ctx, ref, &pb.MailboxRequest{Of: &pb.MailboxRequest_Done{Done: m}}); err != nil {
			return fmt.Errorf("removing items: %w", err)
		}
		items = items[n:]
	}
	return nil
}

// CloseInbox removes an inbox with all that is in it.
func (c *Client) CloseInbox(ctx context.Context, ref Ref, secret identity.InboxSecret) error {
	_, err := c.ask(ctx, ref, &pb.MailboxRequest{Of: &pb.MailboxRequest_Close{Close: &pb.MailboxClose{Secret: secret.Bytes()}}})
	if err != nil {
		return fmt.Errorf("closing an inbox: %w", err)
	}
	return nil
}

// Renew keeps inboxes from expiring and says which are not there.
func (c *Client) Renew(ctx context.Context, ref Ref, secrets []identity.InboxSecret) (missing []identity.InboxID, err error) {
	err = inFrames(secrets, func(raw [][]byte) error {
		r, err := c.ask(ctx, ref, &pb.MailboxRequest{Of: &pb.MailboxRequest_Renew{Renew: &pb.MailboxRenew{Secrets: raw}}})
		if err != nil {
			return fmt.Errorf("renewing inboxes: %w", err)
		}
		ids, err := inboxesOf(r.Missing)
		missing = append(missing, ids...)
		return err
	})
	return missing, err
}

// inFrames cuts secrets into as many frames as they need.
func inFrames(secrets []identity.InboxSecret, f func(raw [][]byte) error) error {
	for len(secrets) > 0 {
		n := min(len(secrets), maxSecrets)
		raw := make([][]byte, n)
		for i, s := range secrets[:n] {
			raw[i] = s.Bytes()
		}
		if err := f(raw); err != nil {
			return err
		}
		secrets = secrets[n:]
	}
	return nil
}

// AddWatch asks to be told of more inboxes on the stream of a running Watch.
func (c *Client) AddWatch(ctx context.Context, ref Ref, secrets []identity.InboxSecret) (waiting, missing []identity.InboxID, err error) {
	err = inFrames(secrets, func(raw [][]byte) error {
		r, err := c.ask(ctx, ref, watchFrame(raw))
		if err != nil {
			return fmt.Errorf("watching inboxes: %w", err)
		}
		w, m, err := lookOf(r)
		waiting, missing = append(waiting, w...), append(missing, m...)
		return err
	})
	return waiting, missing, err
}

func watchFrame(raw [][]byte) *pb.MailboxRequest {
	return &pb.MailboxRequest{Of: &pb.MailboxRequest_Watch{Watch: &pb.MailboxWatch{Secrets: raw}}}
}

func lookOf(r *pb.MailboxReply) (waiting, missing []identity.InboxID, err error) {
	if waiting, err = inboxesOf(r.Waiting); err != nil {
		return nil, nil, err
	}
	missing, err = inboxesOf(r.Missing)
	return waiting, missing, err
}

// Watch tells of inboxes in which something waits and of those that are not there, first of what is so now and then of what
// changes, until ctx or the stream ends; it always returns an error. tell runs on the goroutine that reads the stream and
// must not block. Several may run on one stream; each hears of what any of them asked about.
func (c *Client) Watch(ctx context.Context, ref Ref, secrets []identity.InboxSecret, tell func(waiting, missing []identity.InboxID)) error {
	l, _, err := c.link(ctx, ref)
	if err != nil {
		return fmt.Errorf("watching a mailbox: %w", err)
	}
	defer l.listen(tell)()
	err = inFrames(secrets, func(raw [][]byte) error {
		r, err := l.ask(ctx, watchFrame(raw))
		if err != nil {
			return err
		}
		w, m, err := lookOf(r)
		if err == nil {
			tell(w, m)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("watching a mailbox: %w", err)
	}
	ping := time.NewTicker(c.cfg.Limits.Ping)
	defer ping.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.dead:
			return fmt.Errorf("watching a mailbox: %w", l.err)
		case <-ping.C:
			if _, err := l.ask(ctx, &pb.MailboxRequest{Of: &pb.MailboxRequest_Terms{Terms: &pb.MailboxTermsRequest{}}}); err != nil {
				return fmt.Errorf("watching a mailbox: %w", err)
			}
		}
	}
}

// ask asks on the stream of a mailbox. A stream that was opened earlier may have died without a word; then it is tried once
// more on a new one. Every request may be made twice.
func (c *Client) ask(ctx context.Context, ref Ref, m *pb.MailboxRequest) (*pb.MailboxReply, error) {
	for range maxTries {
		l, fresh, err := c.link(ctx, ref)
		if err != nil {
			return nil, err
		}
		r, err := l.ask(ctx, m)
		if err == nil || fresh || ctx.Err() != nil || l.alive() || errors.Is(err, ErrClosed) || errors.Is(err, ErrProtocol) {
			return r, err
		}
	}
	return nil, ErrBusy
}

// maxTries bounds how often a request is made on streams that others opened and that died at once.
const maxTries = 4

// link returns the stream to a mailbox, opening it if there is none; fresh says that it was opened for this call.
func (c *Client) link(ctx context.Context, ref Ref) (_ *link, fresh bool, err error) {
	for {
		l, fresh, err := c.tryLink(ctx, ref)
		// Whoever was opening it gave up for reasons of their own.
		if err != nil && ctx.Err() == nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) && !fresh {
			continue
		}
		return l, fresh, err
	}
}

func (c *Client) tryLink(ctx context.Context, ref Ref) (_ *link, fresh bool, err error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, false, ErrClosed
	}
	l := c.links[ref.Device]
	if l == nil || !l.alive() {
		l, fresh = newLink(c, ref.Device), true
		c.links[ref.Device] = l
	}
	c.mu.Unlock()
	if fresh {
		c.cfg.Node.Remember(ref.Device, ref.Addrs)
		stream, err := c.cfg.Node.Open(ctx, ref.Device, Protocol)
		if err != nil {
			l.fail(err)
			return nil, true, err
		}
		l.start(stream)
		return l, true, nil
	}
	select {
	case <-l.ready:
		return l, false, nil
	case <-l.dead:
		return nil, false, l.err
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}

// forget removes a link that ended.
func (c *Client) forget(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.links[l.device] == l {
		delete(c.links, l.device)
	}
}
