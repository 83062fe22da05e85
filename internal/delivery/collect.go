package delivery

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hima/identity"
	"hima/internal/mailbox"
	"hima/storage"
)

const (
	// callTimeout is how long one call to a mailbox may take, its dial included.
	callTimeout = 20 * time.Second
	// renewEvery keeps inboxes from expiring while this node runs; a watch renews them too.
	renewEvery = 24 * time.Hour
	// opening is how many inboxes are opened at once.
	opening = 8
	// lostRetry is the longest pause while a mailbox was lost a moment ago: relays and routers come back within minutes.
	lostRetry = 8 * time.Second
	// lostFor is how long that is.
	lostFor = 10 * time.Minute
)

// runBox looks after one mailbox until ctx ends: opens inboxes there, watches and empties them.
func (m *Mail) runBox(ctx context.Context, b *box) {
	tries := 0
	for ctx.Err() == nil {
		begun := m.cfg.Now()
		err := m.attendBox(ctx, b)
		if ctx.Err() != nil {
			return
		}
		now := m.cfg.Now()
		if now.Sub(begun) > time.Minute {
			tries = 0
		}
		m.boxFailed(b, err, now)
		pause := m.cfg.Limits.Retry << min(tries, 12)
		limit := m.cfg.Limits.RetryCap
		m.mu.Lock()
		if now.Sub(b.failed) < lostFor {
			limit = min(limit, lostRetry)
		}
		m.mu.Unlock()
		tries++
		t := time.NewTimer(jitter(min(pause, limit)))
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-b.nudge:
		}
		t.Stop()
	}
}

// Nudge tries a mailbox at once that seems to be back, e.g. because its node connected.
func (m *Mail) Nudge(dev identity.DeviceID) {
	m.mu.Lock()
	b := m.boxes[dev]
	delete(m.bad, dev)
	m.mu.Unlock()
	if b != nil {
		select {
		case b.nudge <- struct{}{}:
		default:
		}
	}
	m.poke()
}

// boxFailed notes why a mailbox could not be attended to.
func (m *Mail) boxFailed(b *box, err error, now time.Time) {
	state := BoxUnreachable
	switch {
	case errors.Is(err, mailbox.ErrDenied):
		state = BoxDenied
	case errors.Is(err, mailbox.ErrNoRoom), errors.Is(err, mailbox.ErrFull):
		state = BoxFull
	}
	m.mu.Lock()
	tell := !b.lost
	if b.state != state || b.failed.IsZero() {
		b.failed = now
	}
	b.state, b.lost = state, true
	if err != nil {
		b.err = cut(err.Error())
	}
	m.mu.Unlock()
	m.log.Debug("a mailbox is not to be had", "mailbox", b.ref.Device.Short(), "error", err)
	if tell {
		m.cfg.Hooks.MailboxEvent(b.ref.Device, "lost")
	}
}

// boxWorks notes that a mailbox answered.
func (m *Mail) boxWorks(b *box) {
	m.mu.Lock()
	back := b.lost
	b.state, b.err, b.lost, b.failed = BoxOK, "", false, time.Time{}
	m.mu.Unlock()
	if back {
		m.cfg.Hooks.MailboxEvent(b.ref.Device, "back")
	}
}

// attendBox works with a mailbox as long as it answers; it always returns an error.
func (m *Mail) attendBox(ctx context.Context, b *box) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := m.learnTerms(ctx, b); err != nil {
		return err
	}
	if err := m.openInboxes(ctx, b); err != nil {
		return err
	}
	m.boxWorks(b)
	var watched sync.Map // inboxes on the stream
	ended := make(chan error, 1)
	looked := make(chan struct{})
	var once sync.Once
	secrets := m.openSecrets(b, &watched)
	go func() {
		ended <- m.cfg.Client.Watch(ctx, b.ref, secrets, func(waiting, missing []identity.InboxID) {
			m.heard(b, waiting, missing)
			once.Do(func() { close(looked) })
		})
	}()
	defer func() { cancel(); <-ended; ended <- nil }()
	renew := time.NewTicker(renewEvery)
	defer renew.Stop()
	if len(secrets) == 0 {
		once.Do(func() { close(looked) })
	}
	select {
	case <-looked:
	case err := <-ended:
		ended <- err
		return err
	}
	for {
		if err := m.openInboxes(ctx, b); err != nil {
			return err
		}
		if more := m.openSecrets(b, &watched); len(more) > 0 {
			waiting, missing, err := m.cfg.Client.AddWatch(ctx, b.ref, more)
			if err != nil {
				return err
			}
			m.heard(b, waiting, missing)
		}
		if err := m.emptyAll(ctx, b); err != nil {
			return err
		}
		m.rest(b, true)
		select {
		case err := <-ended:
			m.rest(b, false)
			ended <- err
			return err
		case <-b.bell:
			m.rest(b, false)
		case <-renew.C:
			m.rest(b, false)
			missing, err := m.cfg.Client.Renew(ctx, b.ref, m.openSecrets(b, nil))
			if err != nil {
				return err
			}
			m.heard(b, nil, missing)
		}
	}
}

func (m *Mail) learnTerms(ctx context.Context, b *box) error {
	asking, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	terms, err := m.cfg.Client.Terms(asking, b.ref)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if !terms.Open && len(b.grant) == 0 {
		m.mu.Unlock()
		return mailbox.ErrDenied
	}
	changed := b.expiry != terms.Expiry || b.workBits != terms.WorkBits || b.requests != (terms.RequestItems > 0 && terms.RequestBytes > 0)
	b.take(terms)
	m.mu.Unlock()
	if !changed {
		return nil
	}
	m.boxesChanged()
	return m.saveBox(ctx, b)
}

// heard takes word of inboxes. It must not block.
func (m *Mail) heard(b *box, waiting, missing []identity.InboxID) {
	m.mu.Lock()
	own := make(map[identity.InboxID]bool, len(b.inboxes))
	for _, in := range b.inboxes {
		own[in.id] = true
	}
	heard := len(missing)
	for _, id := range waiting {
		if own[id] { // others on this stream are of groups' logs
			b.waiting[id] = true
			heard++
		}
	}
	for _, id := range missing {
		for _, in := range b.inboxes {
			if in.id == id {
				in.open, in.after = false, 0 // its node lost its disk
			}
		}
	}
	m.mu.Unlock()
	if heard > 0 {
		b.ring()
	}
}

// openSecrets lists the secrets of open inboxes; with watched, only those that are not in it yet, which it then is.
func (m *Mail) openSecrets(b *box, watched *sync.Map) []identity.InboxSecret {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []identity.InboxSecret
	for _, in := range b.inboxes {
		if !in.open {
			if watched != nil {
				watched.Delete(in.id)
			}
			continue
		}
		if watched != nil {
			if _, known := watched.LoadOrStore(in.id, true); known {
				continue
			}
		}
		out = append(out, in.secret)
	}
	return out
}

// openInboxes opens those that the mailbox does not have yet. Who waits to be told of them is told.
func (m *Mail) openInboxes(ctx context.Context, b *box) error {
	type want struct {
		account identity.AccountID
		in      *ownInbox
	}
	var closed []want
	m.mu.Lock()
	for account, in := range b.inboxes {
		if !in.open && b.retired.IsZero() {
			closed = append(closed, want{account, in})
		}
	}
	grant := b.grant
	m.mu.Unlock()
	if len(closed) == 0 {
		return nil
	}
	g, opened := errgroup.WithContext(ctx)
	g.SetLimit(opening)
	for _, w := range closed {
		g.Go(func() error {
			asking, cancel := context.WithTimeout(opened, callTimeout)
			defer cancel()
			kind := mailbox.Contact
			if w.account.IsZero() {
				kind = mailbox.Request
			}
			st, err := m.cfg.Client.OpenInbox(asking, b.ref, mailbox.InboxConfig{Secret: w.in.secret, Kind: kind, Grant: grant})
			if err != nil {
				return err
			}
			m.mu.Lock()
			w.in.open, w.in.state, w.in.after = true, st, 0
			m.mu.Unlock()
			return nil
		})
	}
	err := g.Wait()
	m.mu.Lock()
	close(m.news)
	m.news = make(chan struct{})
	m.mu.Unlock()
	m.boxesChanged()
	for _, w := range closed {
		for _, dev := range m.cfg.Records.Devices(w.account) {
			m.cfg.Feeds.PushOffer(dev)
		}
	}
	return err
}

// emptyAll fetches what waits, and notes when nothing is left.
func (m *Mail) emptyAll(ctx context.Context, b *box) error {
	m.mu.Lock()
	var list []*ownInbox
	for account, in := range b.inboxes {
		if in.anew {
			in.anew, in.after, b.waiting[in.id] = false, 0, true
		}
		if b.waiting[in.id] {
			delete(b.waiting, in.id)
			if account.IsZero() {
				list = append(list, in) // last: those one knows come first
			} else {
				list = slices.Insert(list, 0, in)
			}
		}
	}
	clear(b.waiting)
	strangers := b.inboxes[identity.AccountID{}]
	m.mu.Unlock()
	for i, in := range list {
		if err := m.empty(ctx, b, in, in == strangers); err != nil {
			m.mu.Lock()
			for _, in := range list[i:] {
				b.waiting[in.id] = true
			}
			m.mu.Unlock()
			return err
		}
	}
	m.readAgain(b)
	return m.noteEmpty(ctx, b)
}

// emptyExact is how exactly it is kept when a mailbox was last found empty: well within the days that keys are kept longer.
const emptyExact = time.Hour

// rest notes whether everything that is known to wait was fetched and word of more would come.
func (m *Mail) rest(b *box, on bool) {
	m.mu.Lock()
	b.resting = on
	m.mu.Unlock()
}

// noteEmpty notes that a mailbox was found empty just now, if nothing is known to wait.
func (m *Mail) noteEmpty(ctx context.Context, b *box) error {
	m.mu.Lock()
	now := m.cfg.Now()
	old := b.emptied
	if len(b.waiting) == 0 {
		b.emptied = now
	}
	save := b.emptied.Sub(b.saved) > emptyExact || old.IsZero()
	if save {
		b.saved = b.emptied
	}
	m.mu.Unlock()
	if !save {
		return nil
	}
	return m.saveBox(ctx, b)
}

// noteResting notes it of all mailboxes that are watched while nothing comes.
func (m *Mail) noteResting(ctx context.Context) error {
	var list []*box
	m.mu.Lock()
	for _, b := range m.boxes {
		if b.resting && len(b.waiting) == 0 {
			list = append(list, b)
		}
	}
	m.mu.Unlock()
	var err error
	for _, b := range list {
		err = errors.Join(err, m.noteEmpty(ctx, b))
	}
	return err
}

// empty fetches what lies in an inbox, takes it, and has it removed.
func (m *Mail) empty(ctx context.Context, b *box, in *ownInbox, strangers bool) error {
	for {
		m.mu.Lock()
		after := in.after
		m.mu.Unlock()
		items, more, err := m.cfg.Client.Fetch(ctx, b.ref, in.secret, after, 0)
		if errors.Is(err, mailbox.ErrNoInbox) {
			m.heard(b, nil, []identity.InboxID{in.id})
			return nil
		}
		if err != nil {
			return err
		}
		var done [][32]byte
		for _, it := range items {
			hash := identity.ItemHash(it.Bytes)
			ok, err := m.take(ctx, it, hash, strangers)
			switch {
			case errors.Is(err, errLater):
				m.mu.Lock()
				b.later, err = true, nil
				m.mu.Unlock()
			case errors.Is(err, storage.ErrTooLarge):
				// Whatever waits behind it must not wait for it: perhaps it is so each time.
				m.log.Warn("leaving an item that is too much for a transaction", "mailbox", b.ref.Device.Short(), "error", err)
				m.lookAnew(b, in)
				err = nil
			}
			if err != nil {
				return err
			}
			if ok {
				done = append(done, hash)
				m.unleave(in, hash)
			} else {
				done = append(done, m.leave(in, hash, strangers)...)
			}
			after = it.Cursor
		}
		if len(done) > 0 {
			if err := m.fail("before-done"); err != nil {
				return err
			}
			if err := m.cfg.Client.Done(ctx, b.ref, in.secret, done); err != nil && !errors.Is(err, mailbox.ErrNoInbox) {
				return err
			}
		}
		m.mu.Lock()
		in.after = after // not before: what could not be removed is met again
		in.state.Items, in.state.Bytes = len(in.left), 0
		m.mu.Unlock()
		if !more {
			return nil
		}
	}
}

// tooLargePause is how long an item is left that was too much for a transaction: what it meets here may be less then.
const tooLargePause = time.Hour

// lookAnew lets all of an inbox be looked at anew after a pause.
func (m *Mail) lookAnew(b *box, in *ownInbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if in.pausing {
		return
	}
	in.pausing = true
	time.AfterFunc(tooLargePause, func() {
		m.mu.Lock()
		in.pausing, in.anew = false, true
		m.mu.Unlock()
		b.ring()
	})
}

// leave notes an item that did not open, or was not taken. It stays until it ends, for what does not open now may be said
// again only then; but an inbox that is open to everybody must not fill up with such: there the oldest go.
func (m *Mail) leave(in *ownInbox, hash [32]byte, strangers bool) (drop [][32]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(in.left, hash) {
		in.left = append(in.left, hash)
	}
	if n := len(in.left) - m.cfg.Limits.Left; strangers && n > 0 {
		drop = slices.Clone(in.left[:n])
		in.left = in.left[n:]
	}
	return drop
}
