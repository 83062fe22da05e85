package mailbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"hima/identity"
	"hima/internal/wire/pb"
	"hima/storage"
)

// The functions here run inside transactions of the database's one committer, or on a snapshot, and touch no state of the
// server but its totals: what they change in those they return, and whoever runs them applies it.

// change is what a transaction did to the totals.
type change struct {
	inboxes, items int
	bytes          int64
	grant          []byte // of the inbox; nil: none
}

// closeBatch is how many items one transaction removes at most, so that it stays well below what one may write.
const closeBatch = 256

// openInbox makes an inbox or changes its quota, and renews it.
func (s *Server) openInbox(tx *storage.Tx, id identity.InboxID, kind Kind, quota uint64, grant []byte) (pb.MailboxReply_Code, *pb.MailboxState, []change, error) {
	in, ok, err := loadInbox(tx, id)
	if err != nil {
		return 0, nil, nil, err
	}
	if ok && in.kind == Log && kind == Log {
		// Many know the secret, also some that are not in the group any more: whoever comes later changes nothing of it.
		living, err := s.living(tx, &in)
		if err != nil {
			return 0, nil, nil, err
		}
		if living {
			quota, grant = in.quota, in.grant
		}
	}
	limit, code, err := s.limitOf(tx, kind, grant)
	if err != nil || code != pb.MailboxReply_CODE_OK {
		return code, nil, nil, err
	}
	if quota == 0 || quota > limit || kind == Log {
		quota = limit
	}
	var did []change
	switch {
	case ok && in.kind != kind:
		return pb.MailboxReply_CODE_BAD, nil, nil, nil
	case ok && !bytes.Equal(in.grant, grant):
		// What it holds counts under the other grant from now on.
		did = []change{
			{items: -int(in.items), bytes: -int64(in.used), grant: in.grant}, {items: int(in.items), bytes: int64(in.used), grant: grant},
		}
	case !ok:
		if s.totals.inboxes() >= s.cfg.Limits.Inboxes {
			return pb.MailboxReply_CODE_NO_ROOM, nil, nil, nil
		}
		local, err := nextLocal(tx)
		if err != nil {
			return 0, nil, nil, err
		}
		in = inbox{local: local, kind: kind, next: 1}
		if kind == Log {
			// Cursors of a log are kept by its readers, perhaps longer than this node keeps its disk: they begin above those
			// of any log of before.
			in.next = uint64(s.now().UnixMilli()) << 16
		}
		did = []change{{inboxes: 1}}
		if err := tx.Set(localKey(keyLocal, local, 0), id[:]); err != nil {
			return 0, nil, nil, err
		}
	}
	in.quota, in.grant, in.touched = quota, grant, s.now().UnixMilli()
	return pb.MailboxReply_CODE_OK, &pb.MailboxState{UsedBytes: in.used, Items: in.items, QuotaBytes: in.quota}, did, saveInbox(tx, id, &in)
}

// limitOf says how large an inbox may be.
func (s *Server) limitOf(tx *storage.Tx, kind Kind, grant []byte) (uint64, pb.MailboxReply_Code, error) {
	l := s.cfg.Limits
	limit := l.InboxBytes
	switch {
	case len(grant) > 0:
		all, ok, err := s.grant(tx, grant)
		if err != nil || !ok {
			return 0, pb.MailboxReply_CODE_DENIED, err
		}
		limit = all
	case !s.cfg.Open:
		return 0, pb.MailboxReply_CODE_DENIED, nil
	}
	switch kind {
	case Request:
		limit = min(limit, l.RequestBytes)
	case Slot:
		limit = identity.MaxMailItem
	case Log:
		limit = min(limit, l.LogBytes)
		if len(grant) == 0 {
			limit = l.LogBytes
		}
	}
	return limit, pb.MailboxReply_CODE_OK, nil
}

// living says whether what an inbox was opened under still counts.
func (s *Server) living(tx *storage.Tx, in *inbox) (bool, error) {
	if len(in.grant) == 0 {
		return s.cfg.Open, nil
	}
	_, ok, err := s.grant(tx, in.grant)
	return ok, err
}

// idleAfter is how long an inbox is kept that nobody renewed. A log of a past epoch is renewed by nobody, and what was in it
// has ended by then.
func (s *Server) idleAfter(in *inbox) time.Duration {
	if in.kind == Log {
		return min(s.cfg.Limits.InboxIdle, s.cfg.Limits.Expiry)
	}
	return s.cfg.Limits.InboxIdle
}

func (s *Server) grant(tx *storage.Tx, grant []byte) (uint64, bool, error) {
	if s.cfg.Grant == nil {
		return 0, false, nil
	}
	return s.cfg.Grant(tx, grant)
}

// kept is what became of a deposit.
type kept struct {
	code  pb.MailboxReply_Code
	until int64 // Unix milliseconds
	fresh bool  // it was not there before
	did   change
}

// deposit stores an item, or finds it stored. Work and secret are checked already. share is asked for each new item of a log
// whether its depositor has had its part.
func (s *Server) deposit(tx *storage.Tx, id identity.InboxID, item []byte, hash [32]byte, share func(localInbox) bool) (kept, error) {
	l, now := s.cfg.Limits, s.now()
	in, ok, err := loadInbox(tx, id)
	if err != nil {
		return kept{}, err
	}
	if !ok || in.idle(now, s.idleAfter(&in)) {
		return kept{code: pb.MailboxReply_CODE_NO_INBOX}, nil
	}
	if in.kind == Slot {
		return s.depositSlot(tx, id, &in, item, hash)
	}
	p, known, err := loadPlace(tx, in.local, hash[:])
	if err != nil {
		return kept{}, err
	}
	if known && p.until > now.UnixMilli() {
		// Whoever comes again lost the answer: the same receipt, and nothing is kept twice.
		return kept{code: pb.MailboxReply_CODE_OK, until: p.until}, nil
	}
	out := kept{did: change{grant: in.grant}}
	if known { // ended, and not swept yet
		if err := s.dropItem(tx, &in, hash[:], &out.did); err != nil {
			return kept{}, err
		}
	}
	code, err := s.room(tx, &in, len(item))
	if err != nil {
		return kept{}, err
	}
	if code == pb.MailboxReply_CODE_OK && in.kind == Log && !share(in.local) {
		code = pb.MailboxReply_CODE_FULL
	}
	if out.code = code; code != pb.MailboxReply_CODE_OK {
		return out, saveInbox(tx, id, &in) // what had ended is gone all the same
	}
	out.until, out.fresh = now.Add(l.Expiry).UnixMilli(), true
	if _, err := putItem(tx, &in, hash[:], item, out.until); err != nil {
		return kept{}, err
	}
	out.did.items++
	out.did.bytes += int64(len(item))
	return out, saveInbox(tx, id, &in)
}

// room judges whether an inbox, its grant and the whole mailbox have room for one more item.
func (s *Server) room(tx *storage.Tx, in *inbox, size int) (pb.MailboxReply_Code, error) {
	l := s.cfg.Limits
	items := l.InboxItems
	switch in.kind {
	case Request:
		items = l.RequestItems
	case Log:
		items = l.LogItems
	}
	if in.kind != Slot && (in.used+uint64(size) > in.quota || int(in.items) >= items) {
		return pb.MailboxReply_CODE_FULL, nil
	}
	if len(in.grant) > 0 {
		quota, ok, err := s.grant(tx, in.grant)
		if err != nil {
			return 0, err
		}
		if !ok {
			return pb.MailboxReply_CODE_NO_INBOX, nil
		}
		if used, _ := s.totals.usage(in.grant); used+uint64(size) > quota {
			return pb.MailboxReply_CODE_FULL, nil
		}
	}
	if all, n := s.totals.sum(); all+uint64(size) > l.TotalBytes || n >= l.TotalItems {
		return pb.MailboxReply_CODE_NO_ROOM, nil
	}
	return pb.MailboxReply_CODE_OK, nil
}

// depositSlot replaces what the slot holds.
func (s *Server) depositSlot(tx *storage.Tx, id identity.InboxID, in *inbox, item []byte, hash [32]byte) (kept, error) {
	out := kept{
		code: pb.MailboxReply_CODE_OK, until: in.touched + s.cfg.Limits.InboxIdle.Milliseconds(), did: change{grant: in.grant},
	}
	if _, known, err := loadPlace(tx, in.local, hash[:]); known || err != nil {
		return out, err
	}
	if code, err := s.room(tx, in, len(item)); err != nil || code != pb.MailboxReply_CODE_OK {
		return kept{code: code}, err
	}
	old, err := hashesOf(tx, in.local, closeBatch)
	if err != nil {
		return kept{}, err
	}
	for _, h := range old {
		if err := s.dropItem(tx, in, h, &out.did); err != nil {
			return kept{}, err
		}
	}
	if _, err := putItem(tx, in, hash[:], item, 0); err != nil {
		return kept{}, err
	}
	out.did.items++
	out.did.bytes += int64(len(item))
	out.fresh = true
	return out, saveInbox(tx, id, in)
}

// dropItem removes an item of an inbox and notes it; the caller saves the inbox.
func (s *Server) dropItem(tx *storage.Tx, in *inbox, hash []byte, did *change) error {
	_, ok, err := loadPlace(tx, in.local, hash)
	if !ok || err != nil {
		return err
	}
	size, err := deleteItem(tx, in.local, hash)
	if err != nil {
		return err
	}
	in.free(size)
	did.items--
	did.bytes -= int64(size)
	return nil
}

// hashesOf lists the hashes, as they stand in keys, of at most max items of an inbox.
func hashesOf(tx *storage.Tx, l localInbox, max int) (hashes [][]byte, err error) {
	prefix := localKey(keyHash, l, 0)
	err = tx.Scan(storage.ScanOptions{Prefix: prefix, KeysOnly: true, Limit: max}, func(k, _ []byte) (bool, error) {
		if len(k) != len(prefix)+hashLen {
			return false, fmt.Errorf("reading the hash of an item: %w", errStored)
		}
		hashes = append(hashes, k[len(prefix):])
		return true, nil
	})
	return hashes, err
}

// done removes items that their reader has.
func (s *Server) done(tx *storage.Tx, id identity.InboxID, hashes [][]byte) (pb.MailboxReply_Code, change, error) {
	in, ok, err := loadInbox(tx, id)
	if err != nil {
		return 0, change{}, err
	}
	if !ok {
		return pb.MailboxReply_CODE_NO_INBOX, change{}, nil
	}
	if in.kind == Log {
		return pb.MailboxReply_CODE_OK, change{}, nil // others have still to read it
	}
	did := change{grant: in.grant}
	for _, h := range hashes {
		if err := s.dropItem(tx, &in, h, &did); err != nil {
			return 0, change{}, err
		}
	}
	if did.items == 0 {
		return pb.MailboxReply_CODE_OK, change{}, nil
	}
	return pb.MailboxReply_CODE_OK, did, saveInbox(tx, id, &in)
}

// closeInbox forgets an inbox at once; its items are removed by the sweeper, for there may be many. Until then they count.
func (s *Server) closeInbox(tx *storage.Tx, id identity.InboxID) (pb.MailboxReply_Code, change, error) {
	in, ok, err := loadInbox(tx, id)
	if err != nil {
		return 0, change{}, err
	}
	if !ok {
		return pb.MailboxReply_CODE_NO_INBOX, change{}, nil
	}
	if in.kind == Log {
		return pb.MailboxReply_CODE_DENIED, change{}, nil // it is not one reader's alone
	}
	return pb.MailboxReply_CODE_OK, change{inboxes: -1}, goneInbox(tx, id, &in)
}

func goneInbox(tx *storage.Tx, id identity.InboxID, in *inbox) error {
	if err := tx.Delete(inboxKey(id)); err != nil {
		return err
	}
	if err := tx.Delete(localKey(keyLocal, in.local, 0)); err != nil {
		return err
	}
	if in.items == 0 {
		return nil
	}
	// What it held, so that the totals are right after a restart; the grant, so that its owner gets the room back.
	b := binary.BigEndian.AppendUint64(nil, in.used)
	b = binary.BigEndian.AppendUint32(b, in.items)
	return tx.Set(localKey(keyGone, in.local, 0), append(b, in.grant...))
}

// gone is an inbox whose items are still to be removed.
type gone struct {
	local localInbox
	used  uint64
	items uint32
	grant []byte
}

func decodeGone(k, v []byte) (gone, error) {
	if len(k) != len(keyGone)+4 || len(v) < 12 || len(v) > 12+maxGrant {
		return gone{}, fmt.Errorf("reading an inbox that is gone: %w", errStored)
	}
	return gone{
		local: localInbox(binary.BigEndian.Uint32(k[len(keyGone):])), used: binary.BigEndian.Uint64(v),
		items: binary.BigEndian.Uint32(v[8:]), grant: v[12:],
	}, nil
}

// sweepGone removes some items of inboxes that are gone; more says that there are others.
func (s *Server) sweepGone(tx *storage.Tx) (did change, more bool, err error) {
	var g gone
	found := false
	err = tx.Scan(storage.ScanOptions{Prefix: []byte(keyGone), Limit: 1}, func(k, v []byte) (_ bool, err error) {
		g, err = decodeGone(k, v)
		found = err == nil
		return false, err
	})
	if err != nil || !found {
		return did, false, err
	}
	hashes, err := hashesOf(tx, g.local, closeBatch)
	if err != nil {
		return did, false, err
	}
	did.grant = g.grant
	in := inbox{used: g.used, items: g.items, local: g.local}
	for _, h := range hashes {
		if err := s.dropItem(tx, &in, h, &did); err != nil {
			return did, false, err
		}
	}
	if len(hashes) == closeBatch {
		b := binary.BigEndian.AppendUint64(nil, in.used)
		b = binary.BigEndian.AppendUint32(b, in.items)
		return did, true, tx.Set(localKey(keyGone, g.local, 0), append(b, g.grant...))
	}
	return did, true, tx.Delete(localKey(keyGone, g.local, 0))
}

// sweepExpired removes items whose time is over; more says that there are others. Changes are told one inbox at a time.
func (s *Server) sweepExpired(tx *storage.Tx, now time.Time) (did []change, more bool, err error) {
	type ended struct {
		local localInbox
		hash  []byte
		key   []byte
	}
	var list []ended
	err = tx.Scan(storage.ScanOptions{Prefix: []byte(keyExpiry), Limit: closeBatch}, func(k, v []byte) (bool, error) {
		if len(k) != len(keyExpiry)+20 || len(v) != hashLen {
			return false, fmt.Errorf("reading the end of an item: %w", errStored)
		}
		rest := k[len(keyExpiry):]
		if int64(binary.BigEndian.Uint64(rest)) > now.UnixMilli() {
			return false, nil
		}
		list = append(list, ended{localInbox(binary.BigEndian.Uint32(rest[8:])), v, k})
		return true, nil
	})
	if err != nil {
		return nil, false, err
	}
	for _, e := range list {
		id, in, ok, err := loadLocal(tx, e.local)
		if err != nil {
			return nil, false, err
		}
		if !ok { // gone: whoever removes its items counts them
			if err := tx.Delete(e.key); err != nil {
				return nil, false, err
			}
			continue
		}
		c := change{grant: in.grant}
		if err := s.dropItem(tx, &in, e.hash, &c); err != nil {
			return nil, false, err
		}
		if err := saveInbox(tx, id, &in); err != nil {
			return nil, false, err
		}
		did = append(did, c)
	}
	return did, len(list) == closeBatch, nil
}

// loadLocal returns the inbox with a local number.
func loadLocal(tx *storage.Tx, l localInbox) (id identity.InboxID, in inbox, ok bool, err error) {
	b, err := tx.Get(localKey(keyLocal, l, 0))
	if errors.Is(err, storage.ErrNotFound) {
		return id, in, false, nil
	}
	if err != nil {
		return id, in, false, err
	}
	if id, err = identity.InboxIDFromBytes(b); err != nil {
		return id, in, false, fmt.Errorf("reading inbox number %d: %w", l, errStored)
	}
	in, ok, err = loadInbox(tx, id)
	return id, in, ok, err
}

// sweepIdle forgets inboxes, from one on, that nobody renewed and in which no receipt still counts. It returns where to go
// on; nil: all were looked at.
func (s *Server) sweepIdle(tx *storage.Tx, start []byte, now time.Time) (did change, next []byte, err error) {
	seen := 0
	err = tx.Scan(storage.ScanOptions{Prefix: []byte(keyInbox), Start: start}, func(k, v []byte) (bool, error) {
		if seen++; seen > closeBatch {
			next = k
			return false, nil
		}
		var in inbox
		if err := in.decode(v); err != nil {
			return false, err
		}
		if !in.idle(now, s.idleAfter(&in)) || (in.items > 0 && in.kind != Slot) {
			return true, nil
		}
		did.inboxes--
		return true, goneInbox(tx, identity.InboxID(k[len(keyInbox):]), &in)
	})
	return did, next, err
}
