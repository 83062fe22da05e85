package groups

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Handing keys over by mail. Who makes an epoch mails its act and its key, and may be gone for ever before that: whoever writes
// under it then, and is gone too when the others come back, would be heard by nobody. So whoever writes says how that is read,
// to each device that is not known to hold the key: with the chat if that goes by mail, and by a mail of its own if the group's
// log took the chat, which nobody finds without the key. Nobody can see whether the maker's mail left, so several do that.

// maxMailers is how many accounts besides the maker's mail a key to those to whom they mail nothing else: those who were first to
// write under it, as far as each knows. If everybody did, a device that comes back to a big group would find its inbox full of
// the same key.
const maxMailers = 3

// The keys of what is noted about that.
const (
	keyWritten = "g/z/" // group 32: epoch 32, number of the first own chat entry under it 8, whether we mail its key 1
	keyNoted   = "g/t/" // group 32, device 32: epoch whose key it showed 32, epoch whose key was mailed to it 32, until 8
)

// written is the epoch that this device made, or began to write under, last.
type written struct {
	epoch roster.ID // zero: none
	first uint64    // number of the first own chat entry under it
	mails bool      // we mail its key also to those who get no other mail of ours
}

func loadWritten(tx *storage.Tx, conv ID) (w written, err error) {
	b, err := tx.Get(key(keyWritten, conv[:]))
	if errors.Is(err, storage.ErrNotFound) {
		return w, nil
	}
	if err == nil && len(b) != 41 {
		err = fmt.Errorf("reading the epoch written under: %w", errRow)
	}
	if err != nil {
		return w, err
	}
	return written{epoch: roster.ID(b[:32]), first: binary.BigEndian.Uint64(b[32:]), mails: b[40] == 1}, nil
}

// keyNote is what is known of the keys that a device holds of a group. Losing it costs a mail.
type keyNote struct {
	shown  roster.ID // the newest epoch whose key it showed; zero: none
	mailed roster.ID // the last epoch whose key a mailbox keeps for it
	until  time.Time
}

func decodeKeyNote(b []byte) (t keyNote, err error) {
	if len(b) != 72 {
		return t, fmt.Errorf("reading what is known of a key: %w", errRow)
	}
	return keyNote{shown: roster.ID(b[:32]), mailed: roster.ID(b[32:64]), until: atMS(int64(binary.BigEndian.Uint64(b[64:])))}, nil
}

// changeKeyNote changes what is noted of a device. f says whether it changed anything.
func changeKeyNote(tx *storage.Tx, conv ID, device identity.DeviceID, f func(*keyNote) bool) error {
	t, err := loadKeyNote(tx, conv, device)
	if err != nil || !f(&t) {
		return err
	}
	until := uint64(0)
	if !t.until.IsZero() {
		until = uint64(t.until.UnixMilli())
	}
	return tx.Set(key(keyNoted, conv[:], device[:]), key("", t.shown[:], t.mailed[:], be64(until)))
}

func loadKeyNote(tx *storage.Tx, conv ID, device identity.DeviceID) (keyNote, error) {
	b, err := tx.Get(key(keyNoted, conv[:], device[:]))
	if errors.Is(err, storage.ErrNotFound) {
		return keyNote{}, nil
	}
	if err != nil {
		return keyNote{}, err
	}
	return decodeKeyNote(b)
}

// noteWritten notes that this device writes under an epoch from now on, and decides once whether it mails the key.
func (g *Groups) noteWritten(tx *storage.Tx, conv ID, e roster.ID) error {
	w, err := loadWritten(tx, conv)
	if err != nil || w.epoch == e {
		return err
	}
	head, _, err := g.parts.Feeds.Head(tx, g.parts.Feeds.OwnFeed(conv, feed.Chat))
	if err != nil {
		return err
	}
	others, err := g.writers(tx, conv, e)
	if err != nil {
		return err
	}
	mails := byte(0)
	if others < maxMailers {
		mails = 1
	}
	return tx.Set(key(keyWritten, conv[:]), key("", e[:], be64(head.Last+1), []byte{mails}))
}

// writers counts the accounts that wrote chat under an epoch, as far as that came here, without who made it and mails its key
// anyway. Under an epoch of our own nobody counts.
func (g *Groups) writers(tx *storage.Tx, conv ID, e roster.ID) (int, error) {
	gr, _, err := g.open(tx, conv, true)
	if err != nil {
		return 0, err
	}
	maker, _ := gr.place(e)
	if maker.device == g.self.Device {
		return 0, nil
	}
	accounts := map[identity.AccountID]bool{}
	prefix := key(keyFirst, conv[:])
	err = tx.Scan(storage.ScanOptions{Prefix: prefix, KeysOnly: true}, func(k, _ []byte) (bool, error) {
		rest := k[len(prefix):]
		if len(rest) != 64 || roster.ID(rest[32:]) != e {
			return true, nil
		}
		h, ok, err := g.parts.Feeds.Head(tx, feed.FeedID{Conversation: conv, Number: feed.Chat, Device: identity.DeviceID(rest[:32])})
		if ok && h.Account != maker.account && h.Device != g.self.Device {
			accounts[h.Account] = true
		}
		return len(accounts) < maxMailers, err
	})
	return len(accounts), err
}

// Lacking says which devices are not known to hold what it takes to read what this device writes in a group; see replica.Keys.
func (g *Groups) Lacking(tx *storage.Tx, conv feed.ConversationID) (replica.Lacking, error) {
	w, err := loadWritten(tx, conv)
	if err != nil || w.epoch == (roster.ID{}) {
		return replica.Lacking{}, err
	}
	row, _, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || row.ReadOnly {
		return replica.Lacking{}, err
	}
	gr, s, err := g.open(tx, conv, false)
	if err != nil || s.view.Role(g.self.Account) == roster.None || s.view.Dissolved {
		return replica.Lacking{}, err
	}
	held, err := g.heldKeys(tx, conv)
	if err != nil {
		return replica.Lacking{}, err
	}
	h := &handover{g: g, tx: tx, conv: conv, gr: gr, s: s, written: w}
	newer := 0 // keys go newest first, and not more than a mail holds
	for _, e := range s.view.Epochs {
		if e.ID == w.epoch {
			h.epoch = e
		}
	}
	for _, e := range s.view.Epochs {
		if _, ok := held[e.ID]; ok && compareEpochs(e, h.epoch) > 0 {
			newer++
		}
	}
	if _, ok := held[w.epoch]; !ok || h.epoch.ID != w.epoch || newer >= identity.MaxGroupKeys {
		return replica.Lacking{}, nil
	}
	return replica.Lacking{Mails: w.mails, Key: h.lacks, Acts: h.acts, Until: func() time.Time { return h.until }}, nil
}

// handover answers for one group in one transaction.
type handover struct {
	g    *Groups
	tx   *storage.Tx
	conv ID
	gr   *group
	s    *snapshot
	written
	epoch roster.Epoch // that of written
	known map[identity.DeviceID]keyNote
	until time.Time // when the first of the devices that were asked about loses what a mailbox keeps for it; zero: none does
}

// notes reads what is noted of all devices, once.
func (h *handover) notes() error {
	if h.known != nil {
		return nil
	}
	all := map[identity.DeviceID]keyNote{}
	prefix := key(keyNoted, h.conv[:])
	err := h.tx.Scan(storage.ScanOptions{Prefix: prefix}, func(k, b []byte) (bool, error) {
		t, err := decodeKeyNote(b)
		if rest := k[len(prefix):]; err == nil && len(rest) == 32 {
			all[identity.DeviceID(rest)] = t
		}
		return true, err
	})
	if err == nil {
		h.known = all
	}
	return err
}

// lacks tells whether a device may have the key, by the same rules as KeysFor, and is not known to hold it.
func (h *handover) lacks(p replica.Peer, acked uint64) (bool, error) {
	if p.Device == h.g.self.Device || acked >= h.first || h.s.view.Role(p.Account) == roster.None || !h.g.validDevice(p) {
		return false, nil // who took what was written under the key has it
	}
	if _, revoked := h.s.view.Revokes(p.Account, p.Device); revoked {
		return false, nil
	}
	if err := h.notes(); err != nil {
		return false, err
	}
	t := h.known[p.Device]
	if t.mailed == h.epoch.ID && t.until.After(h.g.now()) {
		if h.until.IsZero() || t.until.Before(h.until) {
			h.until = t.until
		}
		return false, nil
	}
	h.gr.mu.Lock()
	defer h.gr.mu.Unlock()
	if a, ok := h.gr.roster.Act(t.shown); ok && a.Generation >= h.epoch.Generation {
		return false, nil // whoever handed a later one over to it handed over what it may have of before
	}
	a, ok := h.gr.roster.Act(h.epoch.ID)
	return ok && a.Device != p.Device && h.gr.roster.Entitled(h.epoch.ID, p.Account), nil
}

// acts are the control entries of others that the epoch stands upon, itself among them, without those that a device must hold: the
// ancestors of its own acts, of epochs under which it wrote, took chat of ours, or showed a key, and if there is any of that, of what
// let its account in.
func (h *handover) acts(p replica.Peer, acked uint64) ([]replica.Span, error) {
	if err := h.notes(); err != nil {
		return nil, err
	}
	var known []roster.ID
	if shown := h.known[p.Device].shown; shown != (roster.ID{}) {
		known = append(known, shown)
	}
	for _, d := range []identity.DeviceID{p.Device, h.g.self.Device} {
		prefix := key(keyFirst, h.conv[:], d[:])
		err := h.tx.Scan(storage.ScanOptions{Prefix: prefix}, func(k, b []byte) (bool, error) {
			rest := k[len(prefix):]
			if len(rest) == 32 && len(b) == 8 && (d == p.Device || binary.BigEndian.Uint64(b) <= acked) {
				known = append(known, roster.ID(rest))
			}
			return true, nil
		})
		if err != nil {
			return nil, err
		}
	}
	gr := h.gr
	gr.mu.Lock()
	defer gr.mu.Unlock()
	// The newest may wait for others. Not counted down: a number is what its author says, and may be the highest there is.
	var newest uint64
	for n, id := range gr.numbers {
		if n.device == p.Device && n.seq > newest && gr.roster.Has(id) {
			newest = n.seq
		}
	}
	if newest > 0 {
		known = append(known, gr.numbers[number{p.Device, newest}])
	}
	// Of a new device of an account that is in nothing is heard before it gets the group, perhaps from us alone.
	if one, in := person(&h.s.view, p.Account); in && len(known) > 0 {
		known = append(known, one.Admitted)
	}
	ends := func(of []roster.ID) map[identity.DeviceID]uint64 {
		out := map[identity.DeviceID]uint64{}
		gr.roster.Ancestors(of, func(a *roster.Act) { out[a.Device] = max(out[a.Device], gr.places[a.ID].seq) })
		return out
	}
	has := ends(known)
	var out []replica.Span
	for device, last := range ends([]roster.ID{h.epoch.ID}) {
		if device != h.g.self.Device && device != p.Device && has[device] < last {
			id := feed.FeedID{Conversation: h.conv, Number: feed.Control, Device: device}
			out = append(out, replica.Span{Feed: id, From: has[device] + 1, Last: last, Lazy: true})
		}
	}
	return out, nil
}

// MailedKeys notes that a mailbox keeps keys for a device, until then.
func (g *Groups) MailedKeys(tx *storage.Tx, p replica.Peer, keys []*pb.GroupKeys, until time.Time) error {
	for _, k := range keys {
		if len(k.GetGroup()) != 32 {
			continue
		}
		conv := ID(k.Group)
		w, err := loadWritten(tx, conv)
		if err != nil {
			return err
		}
		for _, one := range k.Keys {
			if w.epoch == (roster.ID{}) || string(one.GetEpoch()) != string(w.epoch[:]) {
				continue
			}
			err := changeKeyNote(tx, conv, p.Device, func(t *keyNote) bool {
				if t.mailed == w.epoch && t.until.After(until) {
					return false // another mailbox keeps it for longer
				}
				t.mailed, t.until = w.epoch, until
				return true
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// shows is the newest epoch whose key a member's device shows that it holds; zero: none that is known, or it is noted already.
func (g *Groups) shows(tx *storage.Tx, conv ID, p replica.Peer, keys []*pb.GroupKey) (best roster.ID, err error) {
	if state, known, err := g.state(tx, conv); err != nil || !known || state != StateMember {
		return best, err
	}
	gr, s, err := g.open(tx, conv, false)
	if err != nil || s.view.Role(p.Account) == roster.None || !g.validDevice(p) {
		return best, err
	}
	t, err := loadKeyNote(tx, conv, p.Device)
	if err != nil {
		return best, err
	}
	gr.mu.Lock()
	defer gr.mu.Unlock()
	var top uint64
	if a, ok := gr.roster.Act(t.shown); ok {
		top = a.Generation
	}
	for _, one := range keys {
		k, err := EpochKeyFromBytes(one.GetKey())
		if err != nil || len(one.GetEpoch()) != 32 {
			continue
		}
		a, ok := gr.roster.Act(roster.ID(one.Epoch))
		if ok && a.Kind == roster.NewEpoch && a.KeyHash == k.Hash() && a.Generation > top {
			best, top = a.ID, a.Generation
		}
	}
	return best, nil
}

// noteShown notes what shows found. It is not waited for: if it is lost the key goes once more by mail.
func (g *Groups) noteShown(conv ID, device identity.DeviceID, e roster.ID) {
	g.cfg.DB.Submit(func(tx *storage.Tx) error {
		return changeKeyNote(tx, conv, device, func(t *keyNote) bool {
			changed := t.shown != e
			t.shown = e
			return changed
		})
	}, nil)
}
