package messenger

import (
	"errors"
	"fmt"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Invitations, answers, applications and verdicts are no state of a group (R27). They are entries of the direct conversation
// of two accounts, also of two that never had to do with each other, and make neither a contact nor a chat of anybody.

// Say writes an entry about a group into the direct conversation with an account. To a stranger it goes as a knock. Where a newer version
// acted in that conversation (R10) it changes nothing and returns both groups.ErrReadOnly and ErrReadOnly.
func (m *Messenger) Say(tx *storage.Tx, to identity.AccountID, kind feed.Kind, content []byte) error {
	if !aboutGroup(feed.Control, kind) || to == m.env.account {
		return fmt.Errorf("saying something about a group: kind %d to %s: %w", kind, to.Short(), ErrInvalid)
	}
	conv := feed.DirectConversation(m.env.account, to)
	if err := m.writable(tx, conv); err != nil {
		if errors.Is(err, ErrReadOnly) {
			// Package groups goes on without who cannot be told: whoever makes one conversation read-only must not stop a group.
			return errors.Join(groups.ErrReadOnly, err)
		}
		return err
	}
	row, _, err := m.contacts.get(tx, to)
	if err != nil {
		return err
	}
	if row.stranger() && !row.Spoken {
		row.Spoken = true
		if err := m.contacts.put(tx, to, row); err != nil {
			return err
		}
	}
	if _, err := m.convs.ensure(tx, conv, to); err != nil {
		return err
	}
	entries, err := m.env.feeds.Append(tx, replica.Draft{Conversation: conv, Number: feed.Control, Kind: kind, Content: content})
	if err != nil {
		return err
	}
	if _, _, err = m.index(tx, entries, m.ownPeer(), true); err != nil {
		return fmt.Errorf("saying something about a group: %w", err)
	}
	tx.OnCommit(func() {
		m.env.feeds.Reannounce(conv)
		m.env.networks.Fetch(to)
	})
	return nil
}

// aboutGroup tells whether an entry of a direct conversation is about a group.
func aboutGroup(n feed.Number, k feed.Kind) bool {
	return n == feed.Control && k >= feed.KindGroupInvitation && k <= feed.KindGroupVerdict
}

// foldSaid hands on what was said about a group: by the other side to us, or by another own device to them.
func (m *Messenger) foldSaid(tx *storage.Tx, e *feed.Entry, content []byte) error {
	to := m.env.account
	if e.Account == m.env.account {
		conv, ok, err := m.convs.get(tx, e.Conversation)
		if err != nil || !ok || e.Device == m.env.device {
			return err
		}
		to = conv.peer
		row, _, err := m.contacts.get(tx, to)
		if err != nil {
			return err
		}
		if row.stranger() && !row.Spoken {
			row.Spoken = true
			if err := m.contacts.put(tx, to, row); err != nil {
				return err
			}
		}
	} else {
		row, _, err := m.contacts.get(tx, e.Account)
		switch {
		case err != nil:
			return err
		case row.Blocked:
			return errIgnored
		case row.stranger():
			q, err := m.saidQuota(tx, e.Account)
			if err != nil {
				return err
			}
			row.Cost.charge(q, e.WireSize(), m.env.now())
			if err := m.contacts.put(tx, e.Account, row); err != nil {
				return err
			}
		}
	}
	return m.env.groups.Said(tx, e.Account, to, e.Kind, content, e.Time())
}

// hears tells whether a stranger may say something about a group. Whoever asks to be let into a group that this account
// decides for, or answers what it said, is heard under any policy; an invitation is a request by another name.
func (m *Messenger) hears(tx *storage.Tx, v *verdict, e *feed.Entry) (pb.Code, error) {
	if e.Kind == feed.KindGroupInvitation {
		if v.policy == strangersDeny && !v.invited {
			return pb.Code_CODE_DENIED, nil
		}
		waiting, err := m.invitedByStrangers(tx, e.Account)
		if err != nil {
			return 0, err
		}
		if waiting >= v.limits.Requests {
			return pb.Code_CODE_FULL, nil
		}
		return pb.Code_CODE_TAKEN, nil
	}
	content, err := e.Content()
	if err != nil {
		return pb.Code_CODE_UNSUPPORTED, nil
	}
	return m.env.groups.Listens(tx, e.Account, e.Kind, content)
}

// invitedByStrangers counts the invitations that wait for an answer and came from strangers others than one.
func (m *Messenger) invitedByStrangers(tx *storage.Tx, but identity.AccountID) (n int, err error) {
	list, err := m.env.groups.Invitations(tx)
	if err != nil {
		return 0, err
	}
	for i := range list {
		if list[i].Outgoing || list[i].State != "waiting" || list[i].From == but {
			continue
		}
		row, _, err := m.contacts.get(tx, list[i].From)
		if err != nil {
			return 0, err
		}
		if row.stranger() {
			n++
		}
	}
	return n, nil
}

// listening tells whether strangers may have something to say about groups, whatever the policy: applicants for a group
// that this account is in, and those it said something to.
func (m *Messenger) listening(tx *storage.Tx) (bool, error) {
	list, err := m.env.groups.Shared(tx, m.env.account)
	return len(list) > 0, err
}

// Comember tells whether an account shares a group with this one, or an invitation or application is under way between the
// two: such a one is told where this device takes its mail.
func (m *Messenger) Comember(a identity.AccountID) bool {
	if a == m.env.account {
		return false
	}
	found := false
	err := m.env.db.View(func(tx *storage.Tx) error {
		row, _, err := m.contacts.get(tx, a)
		if err != nil || row.Blocked {
			return err
		}
		shared, err := m.env.groups.Shared(tx, a)
		found = len(shared) > 0 || row.Spoken || row.Cost.said()
		return err
	})
	return err == nil && found
}
