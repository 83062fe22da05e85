package messenger

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// A device made from the recovery phrase knows nobody. Contacts find it by the account's record, open the conversation,
// and bring what the account's old devices signed there: that rebuilds the contact (R21). What is rebuilt so is a guess
// with the weakest stamp of all: any entry of the self conversation, and the snapshot, wins over it, because a contact
// who was removed or blocked can bring the same entries.

// restoredFor is how long after its restoration a device lets contacts it does not know yet open a conversation.
const restoredFor = 365 * 24 * time.Hour

// restored says whether and when this device was made from the recovery phrase.
type restored struct {
	mu  sync.Mutex // owns row
	row restoredRow
}

type restoredRow struct {
	since    int64 // Unix ms; 0: this device was not restored
	imported bool  // the snapshot was taken in, or there is none
	snapshot int64 // time of the snapshot that was taken in
}

func (r *restored) now() restoredRow {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.row
}

func (r *restored) load(tx *storage.Tx) error {
	b, ok, err := getRow(tx, []byte(keyRestored))
	if err != nil || !ok {
		return err
	}
	in := reader{b: b}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.row = restoredRow{since: int64(in.uint()), imported: in.uint() != 0, snapshot: int64(in.uint())}
	if err := in.done(); err != nil {
		return fmt.Errorf("reading restoration: %w", err)
	}
	return nil
}

func (r *restored) put(tx *storage.Tx, row restoredRow) error {
	b := binary.AppendUvarint(nil, uint64(row.since))
	imported := uint64(0)
	if row.imported {
		imported = 1
	}
	b = binary.AppendUvarint(binary.AppendUvarint(b, imported), uint64(row.snapshot))
	tx.OnCommit(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.row = row
	})
	return tx.Set([]byte(keyRestored), b)
}

// Restored notes that this device was just made from the recovery phrase. Until ImportSnapshot was called no snapshot is
// left at the mailboxes: an empty one would take the place of what is to be taken in.
func (m *Messenger) Restored(ctx context.Context) error {
	return m.env.update(ctx, func(tx *storage.Tx) error {
		row := m.restored.now()
		if row.since != 0 {
			return nil
		}
		return m.restored.put(tx, restoredRow{since: m.env.now().UnixMilli()})
	})
}

// AwaitsSnapshot tells whether this device was restored and ImportSnapshot was not called since.
func (m *Messenger) AwaitsSnapshot() bool {
	row := m.restored.now()
	return row.since != 0 && !row.imported
}

// welcomes tells whether an account nobody decided about here may be a contact of before the restoration.
func (m *Messenger) welcomes(row *contactRow) bool {
	since := m.restored.now().since
	return since != 0 && m.env.now().Sub(time.UnixMilli(since)) < restoredFor && !row.decided() && !row.Blocked
}

// decided tells whether the owner's word about an account is known.
func (r *contactRow) decided() bool { return r.Stamp != stamp{} }

// rebuild notes what follows about a contact from an entry that an old own device signed, or from the answer to one.
func (m *Messenger) rebuild(tx *storage.Tx, e *feed.Entry, a identity.AccountID, state pb.ContactState_State) error {
	before, _, err := m.contacts.get(tx, a)
	if err != nil || before.decided() || !before.Rebuilt.before(stampOf(e)) {
		return err
	}
	after := before
	after.State, after.Rebuilt = state, stampOf(e)
	if after.Added == 0 {
		after.Added = e.TimeMS
	}
	m.contacts.settle(&before, &after)
	if err := m.contacts.put(tx, a, after); err != nil {
		return err
	}
	// What was refused meanwhile is owed: nobody decided not to take it.
	if err := tx.Delete(refusedKey(a)); err != nil {
		return err
	}
	if before.State == after.State {
		return nil
	}
	conv := feed.DirectConversation(m.env.account, a)
	tx.OnCommit(func() {
		m.env.feeds.Reannounce(conv)
		m.relationChanged(a)
	})
	return m.tellContact(tx, a, after.relation())
}

// befriend makes a contact of somebody who accepted us. Where our asking was rebuilt, so is this.
func (m *Messenger) befriend(tx *storage.Tx, e *feed.Entry, row *contactRow) error {
	if !row.decided() {
		return m.rebuild(tx, e, e.Account, pb.ContactState_STATE_CONTACT)
	}
	return ignoreReadOnly(m.writeState(tx, e.Account, func(s *pb.ContactState) { s.State = pb.ContactState_STATE_CONTACT }))
}

// ownAct folds what another own device did in a direct conversation, where the self conversation does not say it.
func (m *Messenger) ownAct(tx *storage.Tx, e *feed.Entry, state pb.ContactState_State) error {
	if e.Device == m.env.device {
		return errIgnored
	}
	conv, ok, err := m.convs.get(tx, e.Conversation)
	if err != nil || !ok {
		return err
	}
	return m.rebuild(tx, e, conv.peer, state)
}
