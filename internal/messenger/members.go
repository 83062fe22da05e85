package messenger

import (
	"errors"
	"slices"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Shared implements replica.Members.
func (m *Messenger) Shared(tx *storage.Tx, account identity.AccountID) ([]feed.ConversationID, error) {
	if account == m.env.account {
		out, err := m.env.groups.Shared(tx, account)
		if err != nil {
			return nil, err
		}
		out = slices.Clone(out)
		err = m.convs.each(tx, func(row convRow) error {
			if !row.group() {
				out = append(out, row.id)
			}
			return nil
		})
		return out, err
	}
	out, err := m.env.groups.Shared(tx, account)
	if err != nil {
		return nil, err
	}
	row, _, err := m.contacts.get(tx, account)
	if err != nil || !row.shared() && !m.welcomes(&row) {
		return out, err
	}
	return append(slices.Clone(out), feed.DirectConversation(m.env.account, account)), nil
}

// Readers implements replica.Members.
func (m *Messenger) Readers(tx *storage.Tx, conv feed.ConversationID) ([]identity.AccountID, error) {
	if group, err := m.isGroup(tx, conv); err != nil || group {
		if err == nil {
			return m.env.groups.Readers(tx, conv)
		}
		return nil, err
	}
	peer, row, err := m.peer(tx, conv)
	if err != nil || peer.IsZero() || !row.shared() {
		return nil, err
	}
	return []identity.AccountID{peer}, nil
}

// KnockToken implements replica.Members.
func (m *Messenger) KnockToken(tx *storage.Tx, conv feed.ConversationID) ([]byte, error) {
	_, row, err := m.peer(tx, conv)
	return row.Token, err
}

// Read implements replica.Members: what was read is told to contacts alone, and in a group to those who said it, and only
// if the owner wants it told.
func (m *Messenger) Read(tx *storage.Tx, id feed.FeedID) (uint64, error) {
	if !m.settings.on(tx, settingReceipts) {
		return 0, nil
	}
	group, err := m.isGroup(tx, id.Conversation)
	if err != nil {
		return 0, err
	}
	f, ok, err := m.feeds.get(tx, id)
	if err != nil || !ok {
		return 0, err
	}
	if group {
		row, _, err := m.contacts.get(tx, f.account)
		if err != nil || row.Blocked {
			return 0, err
		}
		return f.read, nil
	}
	_, row, err := m.peer(tx, id.Conversation)
	if err != nil || row.State != pb.ContactState_STATE_CONTACT || row.Blocked {
		return 0, err
	}
	return f.read, nil
}

// isGroup tells whether a conversation is a group.
func (m *Messenger) isGroup(tx *storage.Tx, conv feed.ConversationID) (bool, error) {
	row, ok, err := m.convs.get(tx, conv)
	if err != nil || ok {
		return ok && row.group(), err
	}
	return m.env.groups.Is(tx, conv)
}

// Window implements replica.Members: whoever shares a direct conversation may have all of it; of a group the roster says.
func (m *Messenger) Window(tx *storage.Tx, conv feed.ConversationID, account identity.AccountID) (replica.Window, error) {
	group, err := m.isGroup(tx, conv)
	if err != nil || !group {
		return nil, err
	}
	return m.env.groups.Window(tx, conv, account)
}

// Lazy implements replica.Members.
func (m *Messenger) Lazy(tx *storage.Tx, conv feed.ConversationID) bool {
	group, err := m.isGroup(tx, conv)
	return err == nil && group
}

// peer gives the other side of a direct conversation; zero for self and for unknown conversations.
func (m *Messenger) peer(tx *storage.Tx, conv feed.ConversationID) (identity.AccountID, contactRow, error) {
	c, ok, err := m.convs.get(tx, conv)
	if err != nil || !ok || c.peer == m.env.account || c.group() {
		return identity.AccountID{}, contactRow{}, err
	}
	row, ok, err := m.contacts.get(tx, c.peer)
	if err == nil && !ok {
		err = errors.New("conversation without contact row")
	}
	return c.peer, row, err
}
