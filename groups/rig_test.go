package groups

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// tester is what both *testing.T and *rapid.T are.
type tester interface {
	require.TestingT
	Helper()
	Fatalf(format string, args ...any)
}

// world is some accounts, with their groups in one process: entries go from one to another when a test says so, and what is
// said between accounts waits in mail until it is delivered.
type world struct {
	t       tester
	now     time.Time
	records map[identity.AccountID]identity.AccountRecord
	keys    map[identity.AccountID]identity.AccountKey
	certs   map[identity.AccountID][]identity.Certificate
	revoked map[identity.AccountID][]identity.DeviceID
	all     []*peer // that were ever made, until close
	nodes   []*peer // of these, who takes part
	mail    []letter
}

// letter is an entry of a direct conversation under way.
type letter struct {
	from, to identity.AccountID
	device   identity.DeviceID
	kind     feed.Kind
	content  []byte
	at       time.Time
}

// peer is one device with its entry store and its groups.
type peer struct {
	w    *world
	name string
	self replica.Peer
	key  identity.DeviceKey
	db   *storage.DB
	rep  *replica.Replica
	g    *Groups
	news []News
	nick string
}

func newWorld(t tester) *world {
	return &world{
		t: t, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), records: map[identity.AccountID]identity.AccountRecord{},
		keys: map[identity.AccountID]identity.AccountKey{}, certs: map[identity.AccountID][]identity.Certificate{},
		revoked: map[identity.AccountID][]identity.DeviceID{},
	}
}

func (w *world) close() {
	for _, p := range w.all {
		_ = p.db.Close()
	}
}

// person makes an account with one device; more of the same name are further devices of it.
func (w *world) person(name string, limits ...Limits) *peer {
	w.t.Helper()
	ak := identity.AccountKeyFromSeed(sha256.Sum256([]byte("account " + name)))
	account := ak.ID()
	w.keys[account] = ak
	dk := identity.DeviceKeyFromSeed(sha256.Sum256(fmt.Appendf(nil, "device %s %d", name, len(w.certs[account]))))
	cert := identity.NewCertificate(ak, dk.ID(), w.now)
	w.certs[account] = append(w.certs[account], cert)
	w.publish(account)
	p := &peer{w: w, name: name, self: replica.Peer{Account: account, Device: dk.ID()}, key: dk}
	var err error
	p.db, err = storage.Open(storage.Config{})
	require.NoError(w.t, err)
	c := Config{
		DB: p.db, Account: account, Key: dk, Certificate: cert, Now: func() time.Time { return w.now },
		Records: func(a identity.AccountID) (identity.AccountRecord, bool) { r, ok := w.records[a]; return r, ok },
		News: func(tx *storage.Tx, n News) error {
			tx.OnCommit(func() { p.news = append(p.news, n) })
			return nil
		},
	}
	if len(limits) > 0 {
		c.Limits = limits[0]
	}
	p.g, err = New(c)
	require.NoError(w.t, err)
	p.rep, err = replica.New(replica.Config{
		DB: p.db, Account: account, Key: dk, Certificate: cert, Now: func() time.Time { return w.now },
		Records: recordsOf{w}, Members: membersOf{p.g}, Gate: gateOf{p.g}, Hooks: hooksOf{p.g},
	})
	require.NoError(w.t, err)
	p.g.Bind(Parts{DefaultNickname: func() string { return p.nick }, Feeds: p.rep, Say: p.say, Devices: recordsOf{w}.Devices})
	w.all, w.nodes = append(w.all, p), append(w.nodes, p)
	return p
}

// publish makes the account record say which devices there are now.
func (w *world) publish(account identity.AccountID) {
	r, err := identity.NewAccountRecord(w.keys[account], identity.RecordConfig{
		LastSeq: w.records[account].Seq, Now: w.now, Devices: w.certs[account], Revoked: w.revoked[account],
	})
	require.NoError(w.t, err)
	w.records[account] = r
}

// revoke takes a device away in the account record.
func (w *world) revoke(p *peer) {
	a := p.self.Account
	w.certs[a] = slices.DeleteFunc(w.certs[a], func(c identity.Certificate) bool { return c.Device == p.self.Device })
	w.revoked[a] = append(w.revoked[a], p.self.Device)
	w.publish(a)
}

func (p *peer) say(tx *storage.Tx, to identity.AccountID, kind feed.Kind, content []byte) error {
	l := letter{p.self.Account, to, p.self.Device, kind, slices.Clone(content), p.w.now}
	tx.OnCommit(func() { p.w.mail = append(p.w.mail, l) })
	return nil
}

// deliver brings what was said to all devices of both sides, and what they say to that.
func (w *world) deliver() {
	w.t.Helper()
	for len(w.mail) > 0 {
		l := w.mail[0]
		w.mail = w.mail[1:]
		for _, p := range w.nodes {
			if p.self.Device != l.device && (p.self.Account == l.to || p.self.Account == l.from) {
				p.hear(l)
			}
		}
	}
}

func (p *peer) hear(l letter) {
	p.update(func(tx *storage.Tx) error { return p.g.Said(tx, l.from, l.to, l.kind, l.content, l.at) })
}

func (p *peer) update(f func(tx *storage.Tx) error) {
	p.w.t.Helper()
	require.NoError(p.w.t, p.db.Update(context.Background(), f), p.name)
}

func (p *peer) view(f func(tx *storage.Tx) error) {
	p.w.t.Helper()
	require.NoError(p.w.t, p.db.View(f), p.name)
}

// gives brings everything that another device may have of the groups that both share, keys too.
func (p *peer) gives(to *peer) {
	p.w.t.Helper()
	var mine, theirs []ID
	p.view(func(tx *storage.Tx) (err error) { mine, err = p.g.Shared(tx, to.self.Account); return err })
	to.view(func(tx *storage.Tx) (err error) { theirs, err = to.g.Shared(tx, p.self.Account); return err })
	for _, conv := range mine {
		if slices.Contains(theirs, conv) || p.self.Account == to.self.Account {
			p.givesGroup(to, conv)
		}
	}
	p.givesKeys(to)
	require.NoError(p.w.t, to.g.judgeKept(context.Background())) // as Run does
}

func (p *peer) givesKeys(to *peer) {
	p.w.t.Helper()
	var keys []*pb.GroupKeys
	p.view(func(tx *storage.Tx) error {
		var err, bad error
		keys, err = p.g.KeysFor(tx, to.self)
		more, bad := p.g.BranchesFor(tx, to.self)
		keys = append(keys, more...)
		return errors.Join(err, bad)
	})
	for _, k := range keys {
		require.NoError(p.w.t, to.g.TookKeys(context.Background(), p.self, k))
	}
}

func (p *peer) givesGroup(to *peer, conv ID) {
	p.w.t.Helper()
	p.showsForks(to, conv)
	for range 8 { // what is refused may be taken when more acts came
		var heads []feed.Head
		var window replica.Window
		p.view(func(tx *storage.Tx) (err error) {
			if heads, err = p.rep.Heads(tx, conv); err == nil {
				window, err = p.g.Window(tx, conv, to.self.Account)
			}
			return err
		})
		slices.SortFunc(heads, func(a, b feed.Head) int { return int(a.Number) - int(b.Number) })
		some := false
		for _, h := range heads {
			some = p.givesFeed(to, feed.FeedID{Conversation: conv, Number: h.Number, Device: h.Device}, h, window) || some
		}
		if !some {
			return
		}
	}
}

func (p *peer) givesFeed(to *peer, id feed.FeedID, h feed.Head, window replica.Window) (some bool) {
	p.w.t.Helper()
	first, last := uint64(1), noCut
	if window != nil {
		first, last = window(id)
	}
	for {
		var have feed.Head
		var held bool
		to.view(func(tx *storage.Tx) (err error) { have, held, err = to.rep.Head(tx, id); return err })
		from := max(first, have.Last+1)
		if from > min(h.Last, last) || id.Device == to.self.Device {
			return some
		}
		run, err := p.rep.ReadRun(id, from)
		if errors.Is(err, replica.ErrNoEntry) {
			return some
		}
		require.NoError(p.w.t, err)
		if run = p.clipped(run, last); run == nil {
			return some
		}
		if !held && from > 1 {
			var own replica.Window
			to.view(func(tx *storage.Tx) (err error) {
				own, err = to.g.Window(tx, id.Conversation, to.self.Account)
				return err
			})
			if own == nil {
				return some
			}
			if begin, _ := own(id); begin == 1 {
				return some
			}
			if !to.admits(p.self, run) {
				return some
			}
			to.update(func(tx *storage.Tx) error { return to.rep.SetFloor(tx, id, from) })
		}
		err = to.rep.Take(context.Background(), p.self, run)
		if errors.Is(err, replica.ErrRefused) {
			return some
		}
		require.NoError(p.w.t, err)
		some = true
	}
}

// clipped ends a run at a number, which only its author can if it is not signed there.
func (p *peer) clipped(raw *pb.Run, last uint64) *pb.Run {
	p.w.t.Helper()
	run, err := feed.CheckDetached(raw)
	require.NoError(p.w.t, err)
	if run.Last().Seq <= last {
		return raw
	}
	if run.Feed().Device != p.self.Device || run.First().Seq > last {
		return nil
	}
	entries := run.Entries()[:last-run.First().Seq+1]
	short, err := feed.Assemble(entries, feed.SignRun(p.key, entries[len(entries)-1]))
	require.NoError(p.w.t, err)
	return short.PB()
}

func (p *peer) admits(from replica.Peer, raw *pb.Run) (ok bool) {
	run, err := feed.CheckDetached(raw)
	require.NoError(p.w.t, err)
	p.update(func(tx *storage.Tx) error {
		take, _, err := p.g.Admit(tx, replica.Incoming{Peer: from, Run: run})
		ok = take == run.Len()
		return err
	})
	return ok
}

// meet lets all of them give each other everything, until nothing is new.
func (w *world) meet(peers ...*peer) {
	w.t.Helper()
	if len(peers) == 0 {
		peers = w.nodes
	}
	for range 3 {
		for _, a := range peers {
			for _, b := range peers {
				if a != b {
					a.gives(b)
				}
			}
		}
		w.deliver()
	}
}

func (p *peer) info(conv ID) (in Info) {
	p.w.t.Helper()
	p.view(func(tx *storage.Tx) (err error) { in, err = p.g.Info(tx, conv); return err })
	return in
}

func (p *peer) rosterView(conv ID) (v roster.View) {
	p.w.t.Helper()
	p.view(func(tx *storage.Tx) error {
		_, s, err := p.g.open(tx, conv, false)
		if err == nil {
			v = s.view
		}
		return err
	})
	return v
}

// create makes a group with everybody else named in it.
func (p *peer) create(o Options, others ...*peer) ID {
	p.w.t.Helper()
	if o.Name == "" {
		o.Name = "tea"
	}
	in, err := p.g.Create(context.Background(), o)
	require.NoError(p.w.t, err)
	for _, q := range others {
		p.letsIn(in.ID, q)
	}
	p.w.meet(append([]*peer{p}, others...)...)
	return in.ID
}

func (p *peer) letsIn(conv ID, q *peer) {
	p.w.t.Helper()
	_, err := p.g.Invite(context.Background(), conv, q.self.Account)
	require.NoError(p.w.t, err)
	p.w.deliver()
	_, err = q.g.Answer(context.Background(), conv, true)
	require.NoError(p.w.t, err)
	p.w.deliver()
}

// text writes a message.
func (p *peer) text(conv ID, s string) (feed.Entry, error) {
	var out feed.Entry
	err := p.db.Update(context.Background(), func(tx *storage.Tx) error {
		d, err := p.g.Draft(tx, conv, feed.KindText, []byte(s))
		if err != nil {
			return err
		}
		e, err := p.rep.Append(tx, d)
		if err == nil {
			out = e[0]
		}
		return err
	})
	return out, err
}

func (p *peer) says(conv ID, s string) feed.Entry {
	p.w.t.Helper()
	e, err := p.text(conv, s)
	require.NoError(p.w.t, err, p.name)
	return e
}

// texts is what somebody sees of a group, sorted.
func (p *peer) texts(conv ID) []string {
	p.w.t.Helper()
	out := []string{}
	p.view(func(tx *storage.Tx) error {
		heads, err := p.rep.Heads(tx, conv)
		if err != nil {
			return err
		}
		for _, h := range heads {
			if h.Number != feed.Chat {
				continue
			}
			id := feed.FeedID{Conversation: conv, Number: h.Number, Device: h.Device}
			err := p.rep.Entries(tx, id, 1, 0, func(e feed.Entry) (bool, error) {
				counts, err := p.g.Counts(tx, e)
				if b, e := e.Content(); err == nil && e == nil && counts {
					out = append(out, string(b))
				}
				return true, err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	slices.Sort(out)
	return out
}

// keysHeld are the epochs whose keys somebody has.
func (p *peer) keysHeld(conv ID) (out map[roster.ID]EpochKey) {
	p.w.t.Helper()
	p.view(func(tx *storage.Tx) (err error) { out, err = p.g.heldKeys(tx, conv); return err })
	return out
}

func (p *peer) heard(kind NewsKind) int {
	n := 0
	for _, x := range p.news {
		if x.Kind == kind {
			n++
		}
	}
	return n
}

// same requires that all have the same roster and would write under the same epoch.
func (w *world) same(conv ID, peers ...*peer) {
	w.t.Helper()
	first := peers[0].rosterView(conv)
	want := first.Digest()
	for _, p := range peers[1:] {
		v := p.rosterView(conv)
		require.Equal(w.t, want, v.Digest(), "%s and %s", peers[0].name, p.name)
	}
}

type recordsOf struct{ w *world }

func (r recordsOf) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	rec, ok := r.w.records[a]
	return rec, ok
}

func (r recordsOf) Admit(_ context.Context, raw []byte) (identity.AccountRecord, error) {
	return identity.ParseAccountRecord(raw)
}

func (r recordsOf) Devices(a identity.AccountID) (out []identity.DeviceID) {
	for _, c := range r.w.records[a].Devices {
		out = append(out, c.Device)
	}
	return out
}

func (recordsOf) Seen(identity.Certificate, string, time.Time) {}

type membersOf struct{ *Groups }

func (membersOf) KnockToken(*storage.Tx, feed.ConversationID) ([]byte, error) { return nil, nil }
func (membersOf) Read(*storage.Tx, feed.FeedID) (uint64, error)               { return 0, nil }
func (membersOf) Lazy(*storage.Tx, feed.ConversationID) bool                  { return true }

type gateOf struct{ *Groups }

func (gateOf) Listening(identity.AccountID) pb.Code          { return pb.Code_CODE_TAKEN }
func (gateOf) Excused(*storage.Tx, feed.Entry) (bool, error) { return false, nil }

type hooksOf struct{ *Groups }

func (hooksOf) Acked(*storage.Tx, replica.Ack) error           { return nil }
func (hooksOf) Refused(*storage.Tx, replica.Refusal) error     { return nil }
func (hooksOf) NotTaken(*storage.Tx, replica.NotTaken) error   { return nil }
func (hooksOf) Receipt(*storage.Tx, replica.Receipt) error     { return nil }
func (hooksOf) OwnFeedDiverged(feed.FeedID)                    {}
func (hooksOf) Typing(replica.Peer, feed.ConversationID, bool) {}
func (hooksOf) Presence(replica.Peer, bool)                    {}
func (hooksOf) SessionUp(replica.SessionInfo)                  {}
func (hooksOf) SessionDown(replica.SessionInfo)                {}

func begin(t *testing.T) *world {
	w := newWorld(t)
	t.Cleanup(w.close)
	return w
}

type txn = storage.Tx

// dump writes down what somebody's roster amounts to, for a test that failed.
func (p *peer) dump(conv ID) string {
	names := map[identity.AccountID]string{}
	for _, q := range p.w.nodes {
		names[q.self.Account] = q.name
	}
	out := p.name + ":\n"
	p.view(func(tx *storage.Tx) error {
		gr, s, err := p.g.open(tx, conv, false)
		if err != nil {
			return err
		}
		for _, m := range s.view.People {
			out += fmt.Sprintf("  %s %d", names[m.Account], m.Role)
		}
		out += fmt.Sprintf("\n  waiting %d\n", gr.roster.Waiting())
		for i := range gr.roster.Len() {
			a := gr.roster.At(i)
			out += fmt.Sprintf("  %s %s/%s.%d kind %d %s %d %s after", a.ID.String()[:6], names[a.Author], a.Device.Short(), gr.places[a.ID].seq, a.Kind,
				names[a.Account], a.Role, s.view.Void[a.ID])
			for _, q := range a.Parents {
				out += " " + q.String()[:6]
			}
			out += "\n"
		}
		return nil
	})
	return out
}
