package groups

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// maxKeys is how many keys of a group one message holds, and how many may wait for their epochs.
const maxKeys = 16

// epoch is a period under one key, whose key is held.
type epoch struct {
	ID         feed.EntryID
	Key        EpochKey
	Generation uint64
	Made       time.Time
}

// newEpoch makes an epoch with a new key. Whoever is in and holds what we hold may have the key.
func (g *Groups) newEpoch(tx *storage.Tx, conv ID) error {
	_, s, err := g.open(tx, conv, true)
	if err != nil {
		return err
	}
	a := roster.Act{Kind: roster.NewEpoch, Generation: 1}
	for _, e := range s.view.Epochs {
		a.Generation = max(a.Generation, e.Generation+1)
	}
	k := NewEpochKey()
	a.KeyHash = k.Hash()
	id, err := g.actID(tx, conv, a, nil)
	if err != nil {
		return err
	}
	if err := tx.Set(key(keyKey, conv[:], id[:]), k.Bytes()); err != nil {
		return err
	}
	return g.noteWritten(tx, conv, id)
}

// writable returns the epoch that we write under: the best one that is for us, made first if there is none (R28).
func (g *Groups) writable(tx *storage.Tx, conv ID) (feed.EntryID, error) {
	_, s, err := g.open(tx, conv, true)
	if err != nil {
		return feed.EntryID{}, err
	}
	if e, ok := s.view.Current(); ok {
		return feed.EntryID(e.ID), nil
	}
	if err := g.newEpoch(tx, conv); err != nil {
		return feed.EntryID{}, err
	}
	if _, s, err = g.open(tx, conv, true); err != nil {
		return feed.EntryID{}, err
	}
	e, ok := s.view.Current()
	if !ok {
		return feed.EntryID{}, fmt.Errorf("making an epoch: %w", ErrConflict)
	}
	return feed.EntryID(e.ID), nil
}

// Draft makes a chat entry of a group for the entry store. If there is no epoch to write under, its act is written in the same
// transaction.
func (g *Groups) Draft(tx *storage.Tx, conv feed.ConversationID, kind feed.Kind, content []byte) (replica.Draft, error) {
	row, ok, err := getRow[groupRow](tx, groupKey(conv))
	switch {
	case err != nil:
		return replica.Draft{}, err
	case !ok:
		return replica.Draft{}, ErrNotFound
	case row.ReadOnly:
		return replica.Draft{}, ErrReadOnly
	}
	s, err := g.standing(tx, conv)
	if err != nil {
		return replica.Draft{}, err
	}
	if s.view.Settings[roster.SettingMute] == "yes" && s.view.Role(g.self.Account) < roster.Admin {
		return replica.Draft{}, ErrMuted
	}
	if err := g.countOwn(tx, conv); err != nil {
		return replica.Draft{}, err
	}
	e, err := g.writable(tx, conv)
	if err == nil {
		err = g.noteWritten(tx, conv, roster.ID(e))
	}
	if err != nil {
		return replica.Draft{}, err
	}
	return replica.Draft{Conversation: conv, Number: feed.Chat, Kind: kind, Content: content, Epoch: e[:]}, nil
}

// KeysFor returns what a device is told of the groups that both share. Of the epoch keys that it may have: those of epochs whose entries its account may have, if the account
// is in now and the device was not taken away. We hold a key only with all acts before it, so who was removed there is not
// in (R29, R30).
func (g *Groups) KeysFor(tx *storage.Tx, p replica.Peer) ([]*pb.GroupKeys, error) {
	if !g.validDevice(p) {
		return nil, nil
	}
	convs, err := g.Shared(tx, p.Account)
	if err != nil {
		return nil, err
	}
	var out []*pb.GroupKeys
	for _, conv := range convs {
		k, err := g.keysOf(tx, conv, p)
		if err != nil {
			return nil, err
		}
		if k != nil {
			out = append(out, k)
		}
	}
	return out, nil
}

// validDevice tells whether a device is one of its account's by the newest record.
func (g *Groups) validDevice(p replica.Peer) bool {
	r, ok := g.cfg.Records(p.Account)
	return ok && r.Lists(p.Device)
}

func (g *Groups) keysOf(tx *storage.Tx, conv ID, p replica.Peer) (*pb.GroupKeys, error) {
	gr, s, err := g.open(tx, conv, false)
	if err != nil {
		return nil, err
	}
	if _, revoked := s.view.Revokes(p.Account, p.Device); revoked || s.view.Role(g.self.Account) == roster.None || s.view.Role(p.Account) == roster.None {
		return nil, nil
	}
	// Who does not understand an act does not know who is in (R10).
	if row, _, err := getRow[groupRow](tx, groupKey(conv)); err != nil || row.ReadOnly {
		return nil, err
	}
	held, err := g.heldKeys(tx, conv)
	if err != nil || len(held) == 0 {
		return nil, err
	}
	epochs := slices.Clone(s.view.Epochs)
	slices.SortFunc(epochs, func(a, b roster.Epoch) int {
		return -compareEpochs(a, b)
	})
	out := &pb.GroupKeys{Group: conv[:]}
	gr.mu.Lock()
	defer gr.mu.Unlock()
	for _, e := range epochs {
		k, ok := held[e.ID]
		if !ok || len(out.Keys) == maxKeys || !gr.roster.Entitled(e.ID, p.Account) {
			continue
		}
		out.Keys = append(out.Keys, &pb.GroupKey{Epoch: e.ID[:], Key: k.Bytes()})
	}
	if len(out.Keys) == 0 {
		return nil, nil
	}
	return out, nil
}

// compareEpochs orders by generation, the one to write under last.
func compareEpochs(a, b roster.Epoch) int {
	if a.Generation != b.Generation {
		if a.Generation < b.Generation {
			return -1
		}
		return 1
	}
	return slices.Compare(b.ID[:], a.ID[:])
}

// heldKeys returns the keys of a group that are held with all acts before them.
func (g *Groups) heldKeys(tx *storage.Tx, conv ID) (map[roster.ID]EpochKey, error) {
	out := map[roster.ID]EpochKey{}
	prefix := key(keyKey, conv[:])
	err := tx.Scan(storage.ScanOptions{Prefix: prefix}, func(k, b []byte) (bool, error) {
		one, err := EpochKeyFromBytes(b)
		if rest := k[len(prefix):]; err == nil && len(rest) == 32 {
			out[roster.ID(rest)] = one
		}
		return true, err
	})
	return out, err
}

// TookKeys takes the keys that a device of somebody in the group hands over. One whose act is not here yet waits, unused.
func (g *Groups) TookKeys(ctx context.Context, p replica.Peer, k *pb.GroupKeys) error {
	if len(k.GetGroup()) != 32 || len(k.Keys) > maxKeys {
		return fmt.Errorf("taking keys of a group: %w", replica.ErrProtocol)
	}
	conv := ID(k.Group)
	took, shown := false, roster.ID{}
	if shared, err := g.sharedWith(conv, p.Account); err != nil || !shared {
		return err // a session asks before; a mail may be anybody's
	}
	if err := g.tookBranches(ctx, conv, p, k); err != nil {
		return err
	}
	err := g.cfg.DB.View(func(tx *storage.Tx) error {
		held, err := g.heldKeys(tx, conv)
		for _, one := range k.Keys {
			if len(one.GetEpoch()) != 32 || len(one.Key) != 32 {
				return fmt.Errorf("taking keys of a group: %w", replica.ErrProtocol)
			}
			if _, ok := held[roster.ID(one.Epoch)]; !ok {
				took = true
			}
		}
		if err == nil {
			shown, err = g.shows(tx, conv, p, k.Keys)
		}
		return err
	})
	if err == nil && shown != (roster.ID{}) {
		g.noteShown(conv, p.Device, shown)
	}
	if err != nil || !took {
		return err
	}
	return g.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return g.takeKeys(tx, conv, k.Keys) })
}

// sharedWith tells whether a group is one that Shared lists.
func (g *Groups) sharedWith(conv ID, account identity.AccountID) (shared bool, err error) {
	err = g.cfg.DB.View(func(tx *storage.Tx) error {
		k := memberKey(account, conv)
		if account == g.self.Account {
			k = groupKey(conv)
		}
		shared, err = tx.Has(k)
		return err
	})
	return shared, err
}

func (g *Groups) takeKeys(tx *storage.Tx, conv ID, keys []*pb.GroupKey) error {
	row, ok, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || !ok || row.State == StateNone || row.State == StateInvited {
		return err
	}
	gr, _, err := g.open(tx, conv, true)
	if err != nil {
		return err
	}
	fresh := false
	for _, one := range keys {
		k, err := EpochKeyFromBytes(one.Key)
		if err != nil {
			return err
		}
		gr.mu.Lock()
		a, ok := gr.roster.Act(roster.ID(one.Epoch))
		gr.mu.Unlock()
		switch {
		case ok && a.Kind == roster.NewEpoch && a.KeyHash == k.Hash():
			fresh = true
			err = tx.Set(key(keyKey, conv[:], one.Epoch), k.Bytes())
		case !ok:
			err = g.keepEarly(tx, conv, one.Epoch, k)
		}
		if err != nil {
			return err
		}
	}
	if fresh {
		tx.OnCommit(func() {
			g.parts.Feeds.PushKeys(conv)
			g.changed(conv)
		})
	}
	return nil
}

// keepEarly keeps a key whose epoch is not known yet. It is neither used nor passed on (R29), and the oldest makes room.
func (g *Groups) keepEarly(tx *storage.Tx, conv ID, id []byte, k EpochKey) error {
	prefix, n := key(keyEarly, conv[:]), 0
	var oldest []byte
	var since uint64
	err := tx.Scan(storage.ScanOptions{Prefix: prefix}, func(at, b []byte) (bool, error) {
		if len(b) != 40 {
			return false, fmt.Errorf("reading an early key: %w", errRow)
		}
		n++
		if t := binary.BigEndian.Uint64(b); oldest == nil || t < since {
			oldest, since = at, t
		}
		return true, nil
	})
	if err == nil && n >= 4*maxKeys {
		err = tx.Delete(oldest)
	}
	if err != nil {
		return err
	}
	return tx.Set(append(prefix, id...), append(be64(uint64(g.now().UnixMilli())), k.Bytes()...))
}

// promoteKeys takes the keys that waited for the acts that came.
func (g *Groups) promoteKeys(tx *storage.Tx, c *change) error {
	for i := range c.acts {
		a := &c.acts[i]
		if a.Kind != roster.NewEpoch {
			continue
		}
		at := key(keyEarly, c.conv[:], a.ID[:])
		b, err := tx.Get(at)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if k, err := EpochKeyFromBytes(b[min(8, len(b)):]); err == nil && k.Hash() == a.KeyHash {
			if err := tx.Set(key(keyKey, c.conv[:], a.ID[:]), k.Bytes()); err != nil {
				return err
			}
		}
		if err := tx.Delete(at); err != nil {
			return err
		}
	}
	return nil
}

// logEpochs returns the epochs whose keys are held, newest first, the one that is written under now (zero: none, or its key
// is not held), and where the group's log is kept.
func (g *Groups) logEpochs(tx *storage.Tx, conv ID) (current epoch, all []epoch, boxes []identity.MailboxRef, err error) {
	gr, s, err := g.open(tx, conv, false)
	if err != nil {
		return epoch{}, nil, nil, err
	}
	held, err := g.heldKeys(tx, conv)
	if err != nil {
		return epoch{}, nil, nil, err
	}
	now, _ := s.view.Current()
	epochs := slices.Clone(s.view.Epochs)
	slices.SortFunc(epochs, func(a, b roster.Epoch) int { return -compareEpochs(a, b) })
	for _, e := range epochs {
		k, ok := held[e.ID]
		if !ok {
			continue
		}
		at, _ := gr.place(e.ID)
		one := epoch{ID: feed.EntryID(e.ID), Key: k, Generation: e.Generation, Made: atMS(at.timeMS)}
		if e.ID == now.ID {
			current = one
		}
		all = append(all, one)
	}
	return current, all, DecodeMailboxes(s.view.Settings[SettingMailbox]), nil
}
