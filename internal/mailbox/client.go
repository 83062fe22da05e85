package mailbox

import (
	"context"
	"errors"

	"hima/identity"
)

// Client brings items to mailboxes and fetches them. It keeps one stream per mailbox while there is something to say.
type Client struct {
	cfg ClientConfig
}

// NewClient checks the configuration. It starts nothing; streams are opened when they are needed.
func NewClient(c ClientConfig) (*Client, error) {
	if c.Node == nil {
		return nil, errors.New("mailbox: the client needs a node")
	}
	return &Client{cfg: c}, nil
}

// Close ends all streams; calls under way return ErrClosed.
func (c *Client) Close() error { return nil }

// Terms asks for the conditions of a mailbox.
func (c *Client) Terms(ctx context.Context, ref Ref) (Terms, error) { return Terms{}, ErrClosed }

// OpenInbox makes an inbox, or changes its quota, and says what it holds.
func (c *Client) OpenInbox(ctx context.Context, ref Ref, in InboxConfig) (State, error) {
	return State{}, ErrClosed
}

// Deposit leaves an item and returns the receipt, which was checked against it.
func (c *Client) Deposit(ctx context.Context, ref Ref, d Deposit) (identity.Custody, error) {
	return identity.Custody{}, ErrClosed
}

// Fetch returns what lies in an inbox after a cursor, oldest first, as much as one answer holds.
func (c *Client) Fetch(ctx context.Context, ref Ref, secret identity.InboxSecret, after uint64, max int) (items []Item, more bool, err error) {
	return nil, false, ErrClosed
}

// Done says that items, by hash, are durable here and can be removed there.
func (c *Client) Done(ctx context.Context, ref Ref, secret identity.InboxSecret, items [][32]byte) error {
	return ErrClosed
}

// CloseInbox removes an inbox with all that is in it.
func (c *Client) CloseInbox(ctx context.Context, ref Ref, secret identity.InboxSecret) error {
	return ErrClosed
}

// Renew keeps inboxes from expiring and says which are not there.
func (c *Client) Renew(ctx context.Context, ref Ref, secrets []identity.InboxSecret) (missing []identity.InboxID, err error) {
	return nil, ErrClosed
}

// AddWatch asks to be told of more inboxes on the stream of a running Watch.
func (c *Client) AddWatch(ctx context.Context, ref Ref, secrets []identity.InboxSecret) (waiting, missing []identity.InboxID, err error) {
	return nil, nil, ErrClosed
}

// Watch tells of inboxes in which something waits, until ctx or the stream ends.
func (c *Client) Watch(ctx context.Context, ref Ref, secrets []identity.InboxSecret, waiting func(identity.InboxID)) error {
	return ErrClosed
}
