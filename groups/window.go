package groups

import (
	"encoding/binary"
	"errors"
	"slices"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// Is tells whether a conversation is a group known here, in whatever state.
func (g *Groups) Is(tx *storage.Tx, conv feed.ConversationID) (bool, error) {
	return tx.Has(groupKey(conv))
}

// Shared lists the groups that are shared with an account: those it is in or was in, and those we asked it to let us into. Of
// the own account it lists all.
func (g *Groups) Shared(tx *storage.Tx, account identity.AccountID) ([]ID, error) {
	prefix := key(keyMember, account[:])
	if account == g.self.Account {
		prefix = []byte(keyGroup)
	}
	var out []ID
	err := tx.Scan(storage.ScanOptions{Prefix: prefix, KeysOnly: true}, func(k, _ []byte) (bool, error) {
		out = append(out, ID(k[len(prefix):]))
		return true, nil
	})
	return out, err
}

// toldFor is how long somebody who went is owed the acts up to their going.
const toldForMS = int64(60 * 24 * 3600 * 1000)

// Readers lists the accounts that may read of a group, besides the own one: those who are in, and for a while those who went.
func (g *Groups) Readers(tx *storage.Tx, conv feed.ConversationID) ([]identity.AccountID, error) {
	gr, s, err := g.open(tx, conv, false)
	if err != nil {
		return nil, err
	}
	var out []identity.AccountID
	for _, p := range s.view.People {
		if p.Account != g.self.Account {
			out = append(out, p.Account)
		}
	}
	now := g.now().UnixMilli()
	for account, acts := range s.view.Gone {
		if account == g.self.Account || s.view.Role(g.self.Account) == roster.None {
			continue
		}
		for _, id := range acts {
			if at, ok := gr.place(id); ok && at.account != account && now-at.timeMS < toldForMS {
				out = append(out, account)
				break
			}
		}
	}
	slices.SortFunc(out, func(a, b identity.AccountID) int { return slices.Compare(a[:], b[:]) })
	return out, nil
}

// members lists the other accounts that are in.
func (g *Groups) members(tx *storage.Tx, conv ID) ([]identity.AccountID, error) {
	_, s, err := g.open(tx, conv, false)
	if err != nil {
		return nil, err
	}
	var out []identity.AccountID
	for _, p := range s.view.People {
		if p.Account != g.self.Account {
			out = append(out, p.Account)
		}
	}
	return out, nil
}

// Window says what an account may have of a group's feeds; see replica.Window.
func (g *Groups) Window(tx *storage.Tx, conv feed.ConversationID, account identity.AccountID) (replica.Window, error) {
	gr, s, err := g.open(tx, conv, false)
	if err != nil {
		return nil, err
	}
	if account == g.self.Account {
		return g.ownWindow(gr, s), nil
	}
	p, in := person(&s.view, account)
	if s.view.Role(g.self.Account) == roster.None {
		// We are not in: we show what we hold to members, and to those we asked, so that we are told the rest.
		asked := false
		if !in {
			if asked, err = g.asked(tx, conv, account); err != nil {
				return nil, err
			}
		}
		if in || asked {
			return s.cut(), nil
		}
	}
	if !in {
		return g.goneWindow(gr, s, account), nil
	}
	gr.mu.Lock()
	floor := gr.roster.Floor(p.Admitted)
	all := gr.roster.Len() == 0 || p.Admitted == roster.ID(conv)
	gr.mu.Unlock()
	cut := s.cut()
	if floor == 0 || all {
		return cut, nil
	}
	firsts, err := g.firsts(tx, conv, gr, floor)
	if err != nil {
		return nil, err
	}
	return func(id feed.FeedID) (uint64, uint64) {
		first, last := uint64(1), noCut
		if cut != nil {
			first, last = cut(id)
		}
		if id.Number != feed.Chat {
			return first, last
		}
		first, ok := firsts[id.Device]
		if !ok || first > last {
			return 1, 0
		}
		return first, last
	}, nil
}

// asked tells whether an account is one of those we asked to let us in.
func (g *Groups) asked(tx *storage.Tx, conv ID, account identity.AccountID) (bool, error) {
	row, _, err := getRow[groupRow](tx, groupKey(conv))
	return slices.ContainsFunc(row.Asks, func(c contactRow) bool { return c.Account == account }), err
}

// ownWindow says what we take: where chat feeds begin is not known to who was not there from the beginning.
func (g *Groups) ownWindow(gr *group, s *snapshot) replica.Window {
	p, in := person(&s.view, g.self.Account)
	gr.mu.Lock()
	defer gr.mu.Unlock()
	if in && gr.roster.Floor(p.Admitted) == 0 {
		return nil
	}
	return func(id feed.FeedID) (uint64, uint64) {
		if id.Number == feed.Chat {
			return 0, noCut
		}
		return 1, noCut
	}
}

// cutWindow ends the chat feeds of those who went, and of revoked devices, where they were cut (R25); nil: nothing is cut.
func cutWindow(gr *group, s *snapshot) replica.Window {
	if len(s.view.Gone) == 0 && len(s.view.Revoked) == 0 {
		return nil
	}
	gr.mu.Lock()
	defer gr.mu.Unlock()
	authors := map[identity.DeviceID]identity.AccountID{}
	for _, p := range gr.places {
		authors[p.device] = p.account
	}
	for account := range s.view.Gone {
		for _, c := range s.view.Cuts(account) {
			authors[c.Device] = account
		}
	}
	return func(id feed.FeedID) (uint64, uint64) {
		author, ok := authors[id.Device]
		if !ok || id.Number != feed.Chat {
			return 1, noCut // of a device that never acted: judged by who takes it
		}
		return 1, s.limit(author, id).whole
	}
}

// goneWindow is what somebody may have who is not in: acts up to their removal, and nothing else (R33). Where an act that they may
// hold would overrule it, what overruled that one belongs to it.
func (g *Groups) goneWindow(gr *group, s *snapshot, account identity.AccountID) replica.Window {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	last := map[identity.DeviceID]uint64{}
	removal := s.view.Removal(account)
	gr.roster.Ancestors(removal, func(a *roster.Act) {
		last[a.Device] = max(last[a.Device], gr.places[a.ID].seq)
	})
	// The epoch that was made with a removal comes along: it is in the same commit, so the same signature, and says only that
	// there is another key.
	for _, id := range removal {
		at, ok := gr.places[id]
		next, _ := gr.roster.Act(gr.numbers[number{at.device, at.seq + 1}])
		if ok && next != nil && next.Kind == roster.NewEpoch && last[at.device] == at.seq {
			last[at.device]++
		}
	}
	return func(id feed.FeedID) (uint64, uint64) {
		if id.Number != feed.Control {
			return 1, 0
		}
		return 1, last[id.Device]
	}
}

// firsts says where each chat feed begins for somebody who may have what was written from a generation on: at the first
// entry under such an epoch (R30).
func (g *Groups) firsts(tx *storage.Tx, conv ID, gr *group, floor uint64) (map[identity.DeviceID]uint64, error) {
	out := map[identity.DeviceID]uint64{}
	note := func(device identity.DeviceID, epoch roster.ID, seq uint64) {
		gr.mu.Lock()
		a, ok := gr.roster.Act(epoch)
		gr.mu.Unlock()
		if have, held := out[device]; ok && a.Generation >= floor && (!held || seq < have) {
			out[device] = seq
		}
	}
	prefix := key(keyFirst, conv[:])
	err := tx.Scan(storage.ScanOptions{Prefix: prefix}, func(k, b []byte) (bool, error) {
		if rest := k[len(prefix):]; len(rest) == 64 && len(b) == 8 {
			note(identity.DeviceID(rest[:32]), roster.ID(rest[32:]), binary.BigEndian.Uint64(b))
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	// What we wrote last is not in the table yet.
	upTo, err := readNumber(tx, key(keyOwn, conv[:]))
	if err != nil {
		return nil, err
	}
	own := g.parts.Feeds.OwnFeed(conv, feed.Chat)
	var last feed.EntryID
	err = g.parts.Feeds.Entries(tx, own, upTo+1, 0, func(e feed.Entry) (bool, error) {
		if len(e.Epoch) == 32 && feed.EntryID(e.Epoch) != last {
			last = feed.EntryID(e.Epoch)
			note(own.Device, roster.ID(last), e.Seq)
		}
		return true, nil
	})
	return out, err
}

// countChat notes chat entries under their epochs: how many there are, and where each feed begins under each.
func (g *Groups) countChat(tx *storage.Tx, conv ID, entries []feed.Entry) error {
	for len(entries) > 0 {
		epoch, n := entries[0].Epoch, 1
		for n < len(entries) && slices.Equal(entries[n].Epoch, epoch) {
			n++
		}
		if len(epoch) == 32 {
			k := key(keyEpoch, conv[:], epoch)
			count, err := readNumber(tx, k)
			if err != nil {
				return err
			}
			if err := tx.Set(k, be64(count+uint64(n))); err != nil {
				return err
			}
			k = key(keyFirst, conv[:], entries[0].Device[:], epoch)
			first, err := readNumber(tx, k)
			if err != nil {
				return err
			}
			if first == 0 || entries[0].Seq < first {
				if err := tx.Set(k, be64(entries[0].Seq)); err != nil {
					return err
				}
				if first == 0 {
					// Whoever may have nothing of before has something now: sessions ask for their windows anew.
					tx.OnCommit(func() { g.parts.Feeds.Reannounce(conv) })
				}
			}
		}
		if e := &entries[n-1]; e.Device == g.self.Device {
			if err := tx.Set(key(keyOwn, conv[:]), be64(e.Seq)); err != nil {
				return err
			}
		}
		entries = entries[n:]
	}
	return nil
}

// countOwn notes own chat entries that were written since it was called last.
func (g *Groups) countOwn(tx *storage.Tx, conv ID) error {
	upTo, err := readNumber(tx, key(keyOwn, conv[:]))
	if err != nil {
		return err
	}
	var fresh []feed.Entry
	err = g.parts.Feeds.Entries(tx, g.parts.Feeds.OwnFeed(conv, feed.Chat), upTo+1, 0, func(e feed.Entry) (bool, error) {
		fresh = append(fresh, e.WithoutBody())
		return true, nil
	})
	if err != nil || len(fresh) == 0 {
		return err
	}
	return g.countChat(tx, conv, fresh)
}

// Audience lists the members to whom an entry goes: those who are in and may have what is written under its epoch, without
// its author. It depends on the epoch, the author and the present roster alone.
func (g *Groups) Audience(tx *storage.Tx, conv feed.ConversationID, h feed.Header) ([]identity.AccountID, error) {
	gr, s, err := g.open(tx, conv, false)
	if err != nil {
		return nil, err
	}
	current, _ := s.view.Current()
	gr.mu.Lock()
	defer gr.mu.Unlock()
	var out []identity.AccountID
	for _, p := range s.view.People {
		if p.Account == h.Account {
			continue
		}
		if h.Number == feed.Chat && len(h.Epoch) == 32 {
			if e := roster.ID(h.Epoch); e != current.ID && !gr.roster.Entitled(e, p.Account) {
				continue
			}
		}
		out = append(out, p.Account)
	}
	return out, nil
}

// Backlog tells whether an entry was said before this account was let in.
func (g *Groups) Backlog(tx *storage.Tx, h feed.Header) (bool, error) {
	gr, s, err := g.open(tx, h.Conversation, false)
	if err != nil {
		return false, err
	}
	p, in := person(&s.view, g.self.Account)
	if !in || h.Account == g.self.Account {
		return false, nil // what we said when we were in before is no news to us
	}
	at, ok := gr.place(p.Admitted)
	return ok && h.Clock < at.clock, nil
}

// Counts tells whether an entry is to be shown: what was said stands before every cut, an act is not void and does not wait.
func (g *Groups) Counts(tx *storage.Tx, e feed.Entry) (bool, error) {
	h := &e.Header
	gr, s, err := g.open(tx, h.Conversation, false)
	if err != nil {
		return false, err
	}
	if h.Number == feed.Chat {
		id := feed.FeedID{Conversation: h.Conversation, Number: h.Number, Device: h.Device}
		return s.limit(h.Account, id).counts(h), nil
	}
	gr.mu.Lock()
	defer gr.mu.Unlock()
	id := roster.ID(e.ID) // and not its number, which two acts have where a feed forked
	return gr.roster.Has(id) && s.view.Void[id] == "", nil
}

// Nickname returns the name somebody has, or had, in a group; empty: none.
func (g *Groups) Nickname(tx *storage.Tx, conv ID, account identity.AccountID) (string, error) {
	_, s, err := g.open(tx, conv, false)
	if err != nil {
		return "", err
	}
	if p, in := person(&s.view, account); in {
		return p.Nickname, nil
	}
	b, err := tx.Get(key(keyNick, conv[:], account[:]))
	if errors.Is(err, storage.ErrNotFound) {
		return "", nil
	}
	return string(b), err
}
