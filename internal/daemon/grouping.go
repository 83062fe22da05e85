package daemon

import (
	"context"
	"errors"

	"hima/groups"
	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/directory"
	"hima/internal/feed"
	"hima/internal/messenger"
	"hima/internal/replica"
	"hima/internal/text"
	"hima/node"
	"hima/storage"
)

// openGroups makes the groups of the account. Their other parts come with bindGroups: they need the groups to exist.
func (u *unlocked) openGroups(p *profile) error {
	v := u.vault
	var err error
	u.groups, err = groups.New(groups.Config{
		DB: u.db, Account: v.Account, Key: v.DeviceKey, Certificate: v.Certificate, Records: u.directory.Record,
		News: u.messenger.GroupNews, Now: p.now, Logger: p.log, Fold: text.FoldName,
	})
	if err != nil {
		return err
	}
	u.pubsub, err = u.node.NewPubSub(node.PubSubConfig{Allowed: u.groups.GossipAllowed, Logger: p.log})
	return err
}

// bindGroups gives the groups what they stand on.
func (u *unlocked) bindGroups() {
	u.groups.Bind(groups.Parts{
		Feeds: groupFeeds{u.replica, u.messenger}, Say: u.messenger.Say, Note: u.messenger.NoteLink, Devices: u.directory.Devices,
		Networks: onNetworks{u}.Links, Addrs: u.node.Addrs, Mailboxes: u.groupMailboxes, Hint: people{u}.Hint, Join: u.joinFor,
		Log: u.mail, PubSub: u.pubsub, Locate: u.locate, Release: u.replica.Release, Directory: u.directory,
		DefaultNickname: u.messenger.OwnName, Seek: u.fetch,
	})
}

// groupFeeds is the entry store as groups see it: own acts pass the messenger, so that they stand in the history.
type groupFeeds struct {
	*replica.Replica
	m *messenger.Messenger
}

// Append implements groups.Feeds.
func (f groupFeeds) Append(tx *storage.Tx, drafts ...replica.Draft) ([]feed.Entry, error) {
	return f.m.AppendGroup(tx, drafts...)
}

// groupMailboxes are the mailboxes in use that may keep a group's log as well: those that are open to everybody. What a
// contact keeps is kept for this account alone.
func (u *unlocked) groupMailboxes() (out []identity.MailboxRef) {
	for _, b := range u.mail.Boxes() {
		if b.State != delivery.BoxRetiring && b.Source != delivery.SourceContact {
			out = append(out, refOf(b))
		}
	}
	return out
}

// joinFor joins a network that an invitation names.
func (u *unlocked) joinFor(ctx context.Context, link identity.NetworkLink) {
	if _, err := (onNetworks{u}).Join(ctx, link); err != nil && ctx.Err() == nil {
		u.log.Info("joining the network of an invitation", "network", link.ID().Short(), "err", err)
	}
}

// findGroups asks networks and neighbours for public groups of a name.
func (u *unlocked) findGroups(ctx context.Context, name string) (out []messenger.FoundCard, unreachable []string, err error) {
	found, unreachable, err := u.directory.FindGroups(ctx, name)
	switch {
	case errors.Is(err, directory.ErrBadGroupName):
		return nil, nil, &messenger.Error{Kind: messenger.ErrInvalid, Message: "no group can have this name", Hint: "give a name with letters, at most 64 of them"}
	case errors.Is(err, directory.ErrNoNetwork):
		return nil, onNetworks{u}.names(), nil
	case err != nil:
		return nil, unreachable, err
	}
	for _, f := range found {
		card := messenger.FoundCard{Card: f.Card, Source: messenger.SourceNearby, Disputed: f.Disputed}
		switch f.Source {
		case directory.SourceNetwork:
			card.Source, card.Network = messenger.SourceNetwork, f.NetworkName
		case directory.SourceOwn:
			card.Source = messenger.SourceMember
		}
		out = append(out, card)
	}
	return out, unreachable, nil
}
