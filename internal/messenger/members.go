package messenger

import (
	"errors"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Shared implements replica.Members.
func (m *Messenger) Shared(tx *storage.Tx, account identity.AccountID) ([]feed.ConversationID, error) {
	if account == m.env.account {
		var out []feed.ConversationID
		err := m.convs.each(tx, func(row convRow) error {
			out = append(out, row.id)
			return nil
		})
		return out, err
	}
	row, _, err := m.contacts.get(tx, account)
	if err != nil || !row.shared() && !m.welcomes(&row) {
		return nil, err
	}
	return []feed.ConversationID{feed.DirectConversation(m.env.account, account)}, nil
}

// Readers implements replica.Members.
func (m *Messenger) Readers(tx *storage.Tx, conv feed.ConversationID) ([]identity.AccountID, error) {
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

// Read implements replica.Members: what was read is told to contacts alone, and only if the owner wants it told.
func (m *Messenger) Read(tx *storage.Tx, id feed.FeedID) (uint64, error) {
	if !m.settings.on(tx, settingReceipts) {
		return 0, nil
	}
	_, row, err := m.peer(tx, id.Conversation)
	if err != nil || row.State != pb.ContactState_STATE_CONTACT || row.Blocked {
		return 0, err
	}
	f, ok, err := m.feeds.get(tx, id)
	if err != nil || !ok {
		return 0, err
	}
	return f.read, nil
}

// Window implements replica.Members: whoever shares a direct conversation may have all of it.
func (m *Messenger) Window(*storage.Tx, feed.ConversationID, identity.AccountID) (replica.Window, error) {
	return nil, nil
}

// Lazy implements replica.Members.
func (m *Messenger) Lazy(*storage.Tx, feed.ConversationID) bool { return false }

// peer gives the other side of a direct conversation; zero for self and for unknown conversations.
func (m *Messenger) peer(tx *storage.Tx, conv feed.ConversationID) (identity.AccountID, contactRow, error) {
	c, ok, err := m.convs.get(tx, conv)
	if err != nil || !ok || c.peer == m.env.account {
		return identity.AccountID{}, contactRow{}, err
	}
	row, ok, err := m.contacts.get(tx, c.peer)
	if err == nil && !ok {
		err = errors.New("conversation without contact row")
	}
	return c.peer, row, err
}
