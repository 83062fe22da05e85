package delivery

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/mailbox"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Mail is the road by way of mailboxes: it posts what is owed to devices that cannot be reached, and collects what was
// left for this one. Make it with NewMail, let Run work.
type Mail struct {
	cfg MailConfig
	log *slog.Logger
}

var (
	_ replica.Side = (*Mail)(nil)
	_ MailFeeds    = (*replica.Replica)(nil)
)

// NewMail checks the configuration and reads what is kept. It starts nothing.
func NewMail(c MailConfig) (*Mail, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	return &Mail{cfg: c, log: c.Logger}, nil
}

// Run posts and collects until ctx ends.
func (m *Mail) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Failed hears that a device could not be reached directly: it is posted to without waiting. Wire it to Config.OnFailed.
func (m *Mail) Failed(device identity.DeviceID) {}

// Offer implements replica.Side.
func (m *Mail) Offer(p replica.Peer) (*pb.MailOffer, error) { return nil, nil }

// Offered implements replica.Side.
func (m *Mail) Offered(ctx context.Context, p replica.Peer, o *pb.MailOffer) error { return nil }

// Custody says which mailboxes hold an entry for a device, and which did until their receipts ended.
func (m *Mail) Custody(dev identity.DeviceID, id feed.FeedID, seq uint64) ([]Custody, error) {
	return nil, nil
}

// SetNetworkBoxes says which mailboxes the joined networks offer. Those of an earlier call that are not in it retire.
func (m *Mail) SetNetworkBoxes(refs []identity.MailboxRef) error { return nil }

// SetRequests says whether strangers may leave first requests.
func (m *Mail) SetRequests(on bool) {}

// Published tells that the own device record which names this prekey is on the network since then (R24).
func (m *Mail) Published(prekey identity.Prekey, at time.Time) error { return nil }

// Add begins to use a mailbox after asking it for its terms. grant is nil where it keeps mail for everybody.
func (m *Mail) Add(ctx context.Context, ref identity.MailboxRef, grant []byte, source string) (BoxStatus, error) {
	return BoxStatus{}, ErrNoBox
}

// Remove retires a mailbox: it is not named any more, and still emptied until nothing can come in.
func (m *Mail) Remove(ctx context.Context, dev identity.DeviceID) (BoxStatus, error) {
	return BoxStatus{}, ErrNoBox
}

// Boxes lists the mailboxes in use.
func (m *Mail) Boxes() []BoxStatus { return nil }

// SetGrant offers to keep mail for an account, or changes how much; 0 takes the offer back.
func (m *Mail) SetGrant(ctx context.Context, account identity.AccountID, quota uint64) (grant [16]byte, err error) {
	return grant, nil
}

// Grants lists for whom this node keeps mail.
func (m *Mail) Grants() ([]GrantStatus, error) { return nil, nil }

// GrantQuota is mailbox.ServerConfig.Grant.
func (m *Mail) GrantQuota(tx *storage.Tx, grant []byte) (quota uint64, ok bool, err error) {
	return 0, false, nil
}

// PutSnapshot leaves the sealed snapshot of the self conversation at the account's mailboxes (R21).
func (m *Mail) PutSnapshot(ctx context.Context, sealed []byte) error { return ErrNoSnapshot }

// FetchSnapshot returns what the account's mailboxes hold as snapshots.
func (m *Mail) FetchSnapshot(ctx context.Context) ([][]byte, error) { return nil, ErrNoSnapshot }

func (c MailConfig) withDefaults() MailConfig {
	d := DefaultMailLimits()
	l := &c.Limits
	setDefault(&l.Grace, d.Grace)
	setDefault(&l.Posts, d.Posts)
	setDefault(&l.Retry, d.Retry)
	setDefault(&l.RetryCap, d.RetryCap)
	setDefault(&l.Receipt, d.Receipt)
	setDefault(&l.Rotation, d.Rotation)
	setDefault(&l.OneTime, d.OneTime)
	setDefault(&l.OneTimeOf, d.OneTimeOf)
	setDefault(&l.Slack, d.Slack)
	setDefault(&l.Left, d.Left)
	setDefault(&l.Devices, d.Devices)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnDevice == nil {
		c.OnDevice = func(DeviceInfo) {}
	}
	if c.Snapshot == nil {
		c.Snapshot = func() (identity.InboxSecret, bool) { return identity.InboxSecret{}, false }
	}
	return c
}

func (c MailConfig) check() error {
	switch {
	case c.DB == nil || c.Feeds == nil || c.Client == nil || c.Records == nil || c.Hooks == nil || c.Accepted == nil:
		return errors.New("delivery: database, feeds, client, records, hooks and the judge of contacts are required")
	case c.Certificate.Device != c.Key.ID() || c.Certificate.Account != c.Account:
		return errors.New("delivery: the certificate is not of this account and device")
	}
	return nil
}

var _ = mailbox.Protocol
