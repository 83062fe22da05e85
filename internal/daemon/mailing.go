package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/directory"
	"hima/internal/feed"
	"hima/internal/mailbox"
	"hima/internal/messenger"
	"hima/internal/replica"
	wirepb "hima/internal/wire/pb"
	"hima/node"
)

const (
	// attendEvery is how often mailboxes and records are looked at when nothing tells of a change, attendSoon while a
	// snapshot is looked for.
	attendEvery = time.Minute
	attendSoon  = 5 * time.Second
	// claimEvery is how often a name is asked for again on a network where somebody else has it, or nobody could say.
	claimEvery = 10 * time.Minute
	// ownMail is what this node keeps for others at most, over all contacts it made an offer to.
	ownMail = 1 << 30
	// snapshotTimeout bounds one look at all mailboxes.
	snapshotTimeout = 20 * time.Second
	// snapshotPatience is how long mailboxes may say that they hold no snapshot before there is none.
	snapshotPatience = 2 * time.Minute
)

// openMail makes the parts that keep, bring and fetch mail. Every node serves mailboxes, to the contacts that it made an
// offer to and to nobody else.
func (u *unlocked) openMail(p *profile, v identity.Vault) error {
	var err error
	if u.client, err = mailbox.NewClient(mailbox.ClientConfig{Node: u.node, Logger: p.log, Now: p.now}); err != nil {
		return err
	}
	u.mail, err = delivery.NewMail(delivery.MailConfig{
		DB: u.db, Key: v.DeviceKey, Account: v.Account, Certificate: v.Certificate, Feeds: u.replica, Client: u.client,
		Records: u.directory, Hooks: u.messenger, Accepted: u.messenger.Accepted, OnDevice: u.setDevice,
		Comember: u.messenger.Comember, Keys: u.groups, Keeps: u.keeps,
		Snapshot: u.snapshotInbox, Now: p.now, Logger: p.log,
	})
	if err != nil {
		return err
	}
	u.side.mail = u.mail
	limits := mailbox.DefaultServerLimits()
	limits.TotalBytes = ownMail
	u.server, err = mailbox.NewServer(mailbox.ServerConfig{
		DB: u.db, Node: u.node, Key: v.DeviceKey, Grant: u.mail.GrantQuota, Limits: limits, Now: p.now, Logger: p.log,
	})
	return err
}

// keeps is how much mail of others this node can keep in all: no single one is promised more.
func (u *unlocked) keeps() uint64 { return min(ownMail, freeSpace(u.dir)) }

func (u *unlocked) setDevice(i delivery.DeviceInfo) {
	u.directory.SetDevice(directory.DeviceInfo{
		Prekey: i.Prekey, PrekeyCreated: i.PrekeyCreated, Mailboxes: i.Mailboxes, Request: i.Request,
	})
}

// snapshotInbox is where the account's snapshot lies; a device without the account's seed does not know.
func (u *unlocked) snapshotInbox() (identity.InboxSecret, bool) {
	key, ok := u.accountKey()
	if !ok {
		return identity.InboxSecret{}, false
	}
	inbox, _ := identity.SnapshotSecrets(key)
	return inbox, true
}

// sideOf stands for the mail where the replica wants it, which has to exist before the mail can.
type sideOf struct{ mail *delivery.Mail }

// Offer implements replica.Side.
func (s *sideOf) Offer(ctx context.Context, p replica.Peer) (*wirepb.MailOffer, error) {
	return s.mail.Offer(ctx, p)
}

// Offered implements replica.Side.
func (s *sideOf) Offered(ctx context.Context, p replica.Peer, o *wirepb.MailOffer) error {
	return s.mail.Offered(ctx, p, o)
}

// mailing is what the messenger sees of the mail.
type mailing struct{ u *unlocked }

// Custody implements messenger.Mail.
func (m mailing) Custody(device identity.DeviceID, id feed.FeedID, seq uint64) ([]delivery.Custody, error) {
	return m.u.mail.Custody(device, id, seq)
}

// SetGrant implements messenger.Mail.
func (m mailing) SetGrant(ctx context.Context, account identity.AccountID, quota uint64) ([16]byte, error) {
	return m.u.mail.SetGrant(ctx, account, quota)
}

// PutSnapshot implements messenger.Mail.
func (m mailing) PutSnapshot(ctx context.Context, plain []byte) error {
	key, ok := m.u.accountKey()
	if !ok {
		return messenger.ErrNoSeed
	}
	_, secret := identity.SnapshotSecrets(key)
	sealed, err := identity.SealSnapshot(secret, plain)
	if err != nil {
		return err
	}
	return m.u.mail.PutSnapshot(ctx, sealed)
}

// attend keeps in step what several parts know of mailboxes and records, until ctx ends.
func (u *unlocked) attend(ctx context.Context) error {
	events, cancel := u.node.Subscribe()
	defer cancel()
	u.mail.SetRequests(u.messenger.RequestPolicy())
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-u.changed:
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if !u.worthAttending(e) {
				continue
			}
		}
		wait := attendEvery
		if u.attendOnce(ctx) {
			wait = attendSoon
		}
		timer.Reset(wait)
	}
}

// worthAttending tells whether an event changes what attend knows. A mailbox that answers again is used at once.
func (u *unlocked) worthAttending(e node.Event) bool {
	switch e := e.(type) {
	case node.PeerUp:
		u.mail.Nudge(e.Device)
	case node.BootstrapUp:
		u.mail.Nudge(e.Device)
		u.groups.Nudge()
		return true
	case node.OnlineChanged:
		u.groups.Nudge() // who could not be reached may be reached now
		return true
	case node.BootstrapDown, node.AddrsChanged:
		return true
	}
	return false
}

// touch makes attend look again. It never blocks.
func (u *unlocked) touch() {
	select {
	case u.changed <- struct{}{}:
	default:
	}
}

// attendOnce looks at everything once and tells whether something is under way that nobody will tell of.
func (u *unlocked) attendOnce(ctx context.Context) (soon bool) {
	networks := u.directory.Networks()
	if boxes := mailboxesOf(networks); !slices.EqualFunc(boxes, u.boxes, sameRef) {
		if err := u.mail.SetNetworkBoxes(ctx, boxes); err != nil {
			u.log.Error("choosing mailboxes", "err", err)
		} else {
			u.boxes = boxes
		}
	}
	u.mail.SetRequests(u.messenger.RequestPolicy())
	u.dropWithdrawn(ctx)
	u.tellPublished(ctx)
	u.claimMissing(networks)
	if err := u.publishSelf(ctx, u.now()); err != nil && ctx.Err() == nil {
		u.log.Error("making the own record", "err", err)
	}
	if !u.messenger.AwaitsSnapshot() {
		return false
	}
	// What the network knows of this account is older than this device, and names the account's other devices (R21).
	u.background(func(ctx context.Context) {
		if _, err := u.directory.FetchAccount(ctx, u.vault.Account); err != nil {
			u.log.Debug("asking for the own record", "err", err)
		}
	})
	u.importSnapshot(ctx)
	return u.messenger.AwaitsSnapshot()
}

// mailboxesOf are the bootstrap nodes that keep mail for everybody.
func mailboxesOf(networks []directory.NetworkState) (boxes []identity.MailboxRef) {
	for _, n := range networks {
		for _, b := range n.Bootstraps {
			if slices.Contains(b.Serves, directory.ServeMailbox) &&
				!slices.ContainsFunc(boxes, func(r identity.MailboxRef) bool { return r.Device == b.Device }) {
				boxes = append(boxes, identity.MailboxRef{Device: b.Device, Addrs: b.Addrs[:min(len(b.Addrs), identity.MaxMailboxAddrs)]})
			}
		}
	}
	return boxes
}

func sameRef(a, b identity.MailboxRef) bool {
	return a.Device == b.Device && slices.Equal(a.Addrs, b.Addrs)
}

// dropWithdrawn retires the mailboxes of contacts that take their offer back.
func (u *unlocked) dropWithdrawn(ctx context.Context) {
	var offers []messenger.Grant
	for _, b := range u.mail.Boxes() {
		if b.Source != delivery.SourceContact || b.State == delivery.BoxRetiring {
			continue
		}
		if offers == nil {
			var err error
			if offers, err = u.messenger.Grants(ctx); err != nil {
				u.log.Error("reading offers", "err", err)
				return
			}
		}
		if slices.ContainsFunc(offers, func(g messenger.Grant) bool { return g.Device == b.Device }) {
			continue
		}
		if _, err := u.mail.Remove(ctx, b.Device); err != nil && ctx.Err() == nil {
			u.log.Error("retiring a mailbox", "device", b.Device.Short(), "err", err)
		}
	}
}

// tellPublished tells the mail since when the world knows the present prekey (R24): since every network that answers was
// seen to hold a record that was made with it.
func (u *unlocked) tellPublished(ctx context.Context) {
	r, ok := u.directory.DeviceRecord(u.node.ID())
	if !ok || r.Prekey.IsZero() || r.Prekey == u.published {
		return
	}
	known := false
	for _, n := range u.directory.Networks() { // after the record was read: one that is newer now is not published
		if n.Online && n.Published.IsZero() {
			return
		}
		known = known || n.Online
	}
	if !known {
		return
	}
	if err := u.mail.Published(ctx, r.Prekey, u.now()); err != nil {
		u.log.Error("noting what was published", "err", err)
		return
	}
	u.published = r.Prekey
}

// claimMissing claims the username where it is not: on a network that an invite led to, or where it was another's.
func (u *unlocked) claimMissing(networks []directory.NetworkState) {
	for _, n := range networks {
		if n.Username.State != directory.NameNone && n.Username.State != "" || !n.Online || u.now().Sub(u.claimed[n.ID]) < claimEvery {
			continue
		}
		u.claimed[n.ID] = u.now()
		u.background(func(ctx context.Context) { u.claimOwn(ctx, n.ID) })
	}
}

// importSnapshot looks for a snapshot at the mailboxes of a device that was made from the recovery phrase (R21). Only when
// mailboxes keep saying that there is none a new one is begun, for it takes the place of the old one.
func (u *unlocked) importSnapshot(ctx context.Context) {
	key, ok := u.accountKey()
	if !ok {
		return
	}
	_, secret := identity.SnapshotSecrets(key)
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	all, err := u.mail.FetchSnapshot(ctx)
	var plains [][]byte
	for _, sealed := range all {
		plain, e := identity.OpenSnapshot(secret, sealed)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		plains = append(plains, plain)
	}
	if len(plains) > 0 {
		in, e := u.messenger.ImportSnapshot(ctx, plains...)
		if e == nil {
			u.log.Info("took a snapshot in", "contacts", in.Contacts, "groups", in.Groups, "networks", len(in.Networks))
			u.touch()
			return
		}
		err = errors.Join(err, e)
	}
	answered := slices.ContainsFunc(u.mail.Boxes(), func(b delivery.BoxStatus) bool { return b.State == delivery.BoxOK && b.Connected })
	switch {
	case !errors.Is(err, delivery.ErrNoSnapshot) || !answered:
		u.log.Debug("looking for a snapshot", "err", err)
		u.noSnapshot = time.Time{}
		return
	case u.noSnapshot.IsZero():
		u.noSnapshot = u.now()
	}
	if u.now().Sub(u.noSnapshot) < snapshotPatience {
		return
	}
	if _, err := u.messenger.ImportSnapshot(ctx); err != nil {
		u.log.Error("beginning a new snapshot", "err", err)
	}
}

// note is an event of the network that becomes one of the user's.
type note struct {
	name    *directory.NameEvent
	network *directory.NetworkEvent
}

// notes are events that wait to be stored: those who tell of them may not block.
type notes struct {
	mu   sync.Mutex
	list []note
	wake chan struct{} // one slot
}

// maxNotes bounds the queue; more than a few wait only while the disk does not answer.
const maxNotes = 256

func (n *notes) add(e note) {
	n.mu.Lock()
	if len(n.list) < maxNotes {
		n.list = append(n.list, e)
	}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *notes) take() []note {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.list
	n.list = nil
	return out
}

// runNotes stores events until ctx ends.
func (u *unlocked) runNotes(ctx context.Context) error {
	for {
		for _, e := range u.notes.take() {
			var err error
			switch {
			case e.name != nil:
				err = u.messenger.NameChanged(ctx, nameState(e.name.NameState, e.name.NetworkName))
			case e.network != nil:
				err = u.messenger.NetworkChanged(ctx, e.network.Name, e.network.What)
			}
			if err != nil && ctx.Err() == nil {
				u.log.Error("storing an event of the network", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-u.notes.wake:
		}
	}
}

func (u *unlocked) onName(e directory.NameEvent) { u.notes.add(note{name: &e}) }

func (u *unlocked) onNetwork(e directory.NetworkEvent) {
	u.touch()
	switch e.What {
	case "joined", "left", "online", "offline":
		u.notes.add(note{network: &e})
	}
}

func refOf(b delivery.BoxStatus) identity.MailboxRef {
	return identity.MailboxRef{Device: b.Device, Addrs: b.Addrs}
}
