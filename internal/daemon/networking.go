package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/control/server"
	"hima/internal/delivery"
	"hima/internal/directory"
	"hima/internal/mailbox"
	"hima/internal/messenger"
)

// networking serves what concerns networks and mailboxes of an unlocked profile.
type networking struct {
	u *unlocked
	p *profile
}

var _ server.Network = networking{}

// Network implements server.Backend.
func (p *profile) Network() (server.Network, error) {
	if _, err := p.Messenger(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return nil, &control.Error{Code: control.Unavailable, Message: "the node is stopping", Hint: "try again in a moment"}
	}
	return networking{p.current, p}, nil
}

// refusal gives errors of the packages below their code and a sentence of its own: theirs is for those who look for the
// cause, and names functions and formats.
func refusal(err error) error {
	for _, c := range []struct {
		is         error
		code       control.Code
		said, hint string
	}{
		{
			directory.ErrBadLink, control.Invalid, "this is neither the link of a network nor the address of a bootstrap node",
			"give a link that begins with hima-net:, whole, or an address that ends in /p2p/ and the node's ID",
		},
		{directory.ErrNetworkUnknown, control.NotFound, "this network is not joined", "`hima network list` shows the networks that are joined"},
		{directory.ErrUnreachable, control.Unavailable, "no bootstrap node answered", "check the address and the connection, and try again"},
		{directory.ErrTooManyNetworks, control.Full, "too many networks are joined", "leave a network first"},
		{delivery.ErrNoBox, control.NotFound, "there is no such mailbox", "`hima mailbox list` shows the mailboxes in use"},
		{delivery.ErrTooManyBoxes, control.Full, "too many mailboxes are in use", "remove a mailbox first"},
		{mailbox.ErrDenied, control.Denied, "this mailbox keeps no mail for you", "its owner has to offer it first, with `hima mailbox offer`"},
		{mailbox.ErrNoRoom, control.Full, "this mailbox has no room", "choose another mailbox"},
	} {
		if errors.Is(err, c.is) {
			return &control.Error{Code: c.code, Message: c.said, Hint: c.hint, Cause: err}
		}
	}
	return err
}

// JoinNetwork implements server.Network.
func (n networking) JoinNetwork(ctx context.Context, in *pb.JoinNetworkRequest) (*pb.JoinNetworkResponse, error) {
	s, added, err := n.u.directory.JoinNetwork(ctx, in.GetLink())
	if err != nil {
		return nil, refusal(err)
	}
	if added || s.Username.State == directory.NameNone {
		bounded, cancel := context.WithTimeout(ctx, joinPatience)
		n.u.claimOwn(bounded, s.ID)
		cancel()
	}
	return &pb.JoinNetworkResponse{Network: n.u.network(n.u.present(s)), Added: added}, nil
}

// joinPatience is how long somebody who joins waits to hear whether the name is confirmed.
const joinPatience = 8 * time.Second

// present is the newest state of a network.
func (u *unlocked) present(s directory.NetworkState) directory.NetworkState {
	if now, ok := (onNetworks{u}).state(s.ID); ok {
		return now
	}
	return s
}

// network is the API's form of a network.
func (u *unlocked) network(s directory.NetworkState) *pb.Network {
	out := &pb.Network{
		Id: s.ID.String(), Name: s.Name, Link: s.Link.String(), Online: s.Online, DhtPeers: int32(s.DHTPeers),
		Username: server.NetworkName(u.nameOn(s)), JoinedMs: millis(s.Joined), PublishedMs: millis(s.Published),
	}
	for _, b := range s.Bootstraps {
		out.Bootstraps = append(out.Bootstraps, &pb.Bootstrap{
			Device: b.Device.String(), Addresses: b.Addrs, Connected: b.Connected, Serves: b.Serves,
			RttUs: b.RTT.Microseconds(), Reserved: b.Reserved, Error: b.Error,
		})
	}
	return out
}

// millis is the API's form of a time: 0 for none.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// LeaveNetwork implements server.Network.
func (n networking) LeaveNetwork(ctx context.Context, in *pb.LeaveNetworkRequest) (*pb.LeaveNetworkResponse, error) {
	s, err := n.find(in.GetNetwork())
	if err != nil {
		return nil, err
	}
	if err := n.u.directory.LeaveNetwork(ctx, s.ID); err != nil {
		return nil, refusal(err)
	}
	n.u.lost.drop(s.ID)
	return &pb.LeaveNetworkResponse{}, nil
}

// find resolves what a user calls a network: its name, its link, its ID or the beginning of that.
func (n networking) find(what string) (directory.NetworkState, error) {
	what = strings.TrimSpace(what)
	var byName, byID []directory.NetworkState
	for _, s := range n.u.directory.Networks() {
		id := s.ID.String()
		if l, err := identity.ParseNetworkLink(what); err == nil && l.ID() == s.ID || what == id {
			return s, nil
		}
		if s.Name == what {
			byName = append(byName, s)
		}
		if len(what) >= 4 && strings.HasPrefix(id, strings.TrimSuffix(what, "…")) {
			byID = append(byID, s)
		}
	}
	found := byName
	if len(found) == 0 {
		found = byID
	}
	switch len(found) {
	case 0:
		return directory.NetworkState{}, &control.Error{
			Code: control.NotFound, Message: fmt.Sprintf("no network %q is joined", what), Hint: "`hima network list` shows those that are",
		}
	case 1:
		return found[0], nil
	}
	return directory.NetworkState{}, &control.Error{
		Code: control.Ambiguous, Message: fmt.Sprintf("%d networks are called %q", len(found), what), Hint: "give the beginning of its ID, from `hima network list`",
	}
}

// ListNetworks implements server.Network.
func (n networking) ListNetworks(context.Context, *pb.ListNetworksRequest) (*pb.ListNetworksResponse, error) {
	return &pb.ListNetworksResponse{Networks: n.u.networks()}, nil
}

func (u *unlocked) networks() (out []*pb.Network) {
	for _, s := range u.directory.Networks() {
		out = append(out, u.network(s))
	}
	return out
}

// ListMailboxes implements server.Network.
func (n networking) ListMailboxes(ctx context.Context, _ *pb.ListMailboxesRequest) (*pb.ListMailboxesResponse, error) {
	out := &pb.ListMailboxesResponse{}
	used := map[identity.DeviceID]bool{}
	for _, b := range n.u.mail.Boxes() {
		used[b.Device] = b.State != delivery.BoxRetiring
		m, err := n.box(ctx, b)
		if err != nil {
			return nil, err
		}
		out.Mailboxes = append(out.Mailboxes, m)
	}
	grants, err := n.u.mail.Grants()
	if err != nil {
		return nil, err
	}
	for _, g := range grants {
		o, err := n.offer(ctx, g)
		if err != nil {
			return nil, err
		}
		out.Offers = append(out.Offers, o)
	}
	received, err := n.u.messenger.Grants(ctx)
	if err != nil {
		return nil, err
	}
	for _, g := range received {
		if !used[g.Device] {
			out.Received = append(out.Received, &pb.MailboxOffer{Account: g.Account.String(), Name: g.Name, QuotaBytes: g.Quota})
		}
	}
	return out, nil
}

// offer is the API's form of what is kept for an account here.
func (n networking) offer(ctx context.Context, g delivery.GrantStatus) (*pb.MailboxOffer, error) {
	name, err := n.u.messenger.NameOf(ctx, g.Account)
	if err != nil {
		return nil, err
	}
	bytes, items := n.u.server.Usage(g.Grant[:])
	return &pb.MailboxOffer{Account: g.Account.String(), Name: name, QuotaBytes: g.Quota, UsedBytes: bytes, Items: int32(items)}, nil
}

// box is the API's form of a mailbox.
func (n networking) box(ctx context.Context, b delivery.BoxStatus) (*pb.Mailbox, error) {
	name, err := n.u.boxName(b.Device)
	if err != nil {
		return nil, err
	}
	// Each inbox counts its own quota there; together they hold no more than was granted.
	if granted, ok := n.granted(ctx, b); ok {
		b.Quota = granted
	}
	return &pb.Mailbox{
		Device: b.Device.String(), Name: name, Addresses: b.Addrs, Source: b.Source, State: b.State, Connected: b.Connected,
		Inboxes: int32(b.Inboxes), Waiting: int32(b.Waiting), UsedBytes: b.Used, QuotaBytes: b.Quota,
		ExpiryMs: b.Expiry.Milliseconds(), EmptiedMs: millis(b.Emptied), Error: b.Error,
	}, nil
}

// granted is what a contact offered to keep.
func (n networking) granted(ctx context.Context, b delivery.BoxStatus) (uint64, bool) {
	if b.Source != delivery.SourceContact {
		return 0, false
	}
	offers, err := n.u.messenger.Grants(ctx)
	if err != nil {
		return 0, false
	}
	for _, g := range offers {
		if g.Device == b.Device {
			return g.Quota, true
		}
	}
	return 0, false
}

// boxName is what a mailbox is called here: the contact whose node it is, the network, or its ID.
func (u *unlocked) boxName(d identity.DeviceID) (string, error) {
	name, err := u.messenger.MailboxName(d)
	if err != nil || name != "" {
		return name, err
	}
	for _, s := range u.directory.Networks() {
		for _, b := range s.Bootstraps {
			if b.Device == d {
				return s.Name, nil
			}
		}
	}
	return d.Short(), nil
}

// callsBox tells whether what a user wrote means a mailbox: what the list shows, the contact whose node it is by any name,
// or the device's ID, its beginning or its end.
func (n networking) callsBox(ctx context.Context, what string, d identity.DeviceID) (bool, error) {
	name, err := n.u.boxName(d)
	if err != nil {
		return false, err
	}
	id := d.String()
	if what == id || strings.EqualFold(what, name) || len(what) >= 4 && (strings.HasPrefix(id, what) || strings.HasSuffix(id, strings.TrimPrefix(what, "…"))) {
		return true, nil
	}
	c, ok := n.knows(ctx, what)
	if !ok {
		return false, nil
	}
	owner, ok := n.u.directory.DeviceAccount(d)
	return ok && owner == c.Account, nil
}

// AddMailbox implements server.Network.
func (n networking) AddMailbox(ctx context.Context, in *pb.AddMailboxRequest) (*pb.AddMailboxResponse, error) {
	who := strings.TrimSpace(in.GetWho())
	ref, grant, source := identity.MailboxRef{}, []byte(nil), delivery.SourceAdded
	if strings.HasPrefix(who, "/") {
		addr, id, ok := strings.Cut(who, "/p2p/")
		dev, err := identity.ParseDeviceID(id)
		if !ok || err != nil {
			return nil, &control.Error{Code: control.Invalid, Message: fmt.Sprintf("%q is not the address of a node", who), Hint: "it ends in /p2p/ and the node's ID", Cause: err}
		}
		ref = identity.MailboxRef{Device: dev, Addrs: []string{addr}}
	} else {
		g, err := n.u.messenger.Grant(ctx, who)
		if errors.Is(err, messenger.ErrNotFound) {
			if _, found := n.knows(ctx, who); found {
				return nil, &control.Error{Code: control.Denied, Message: fmt.Sprintf("%q offers to keep no mail for you", who), Hint: "they can with `hima mailbox offer`", Cause: err}
			}
		}
		if err != nil {
			return nil, err
		}
		ref, grant, source = identity.MailboxRef{Device: g.Device, Addrs: g.Addrs}, g.Grant[:], delivery.SourceContact
	}
	b, err := n.u.mail.Add(ctx, ref, grant, source)
	if err != nil {
		return nil, refusal(unreachable(err))
	}
	m, err := n.box(ctx, b)
	return &pb.AddMailboxResponse{Mailbox: m}, err
}

// knows tells whether a name means somebody known here.
func (n networking) knows(ctx context.Context, who string) (messenger.Contact, bool) {
	all, err := n.u.messenger.Contacts(ctx, true)
	if err != nil || who == "" {
		return messenger.Contact{}, false
	}
	for _, c := range all {
		for _, called := range []string{c.Username, c.Nickname, c.Remark, c.Account.String()} {
			if strings.EqualFold(who, called) {
				return c, true
			}
		}
	}
	return messenger.Contact{}, false
}

// unreachable gives errors of dialling their code.
func unreachable(err error) error {
	for _, is := range dialErrors() {
		if errors.Is(err, is) {
			return &control.Error{Code: control.Unavailable, Message: "the mailbox does not answer", Hint: "check the address and the connection, and try again", Cause: err}
		}
	}
	return err
}

// RemoveMailbox implements server.Network.
func (n networking) RemoveMailbox(ctx context.Context, in *pb.RemoveMailboxRequest) (*pb.RemoveMailboxResponse, error) {
	what := strings.TrimSpace(in.GetMailbox())
	var found []identity.DeviceID
	for _, b := range n.u.mail.Boxes() {
		means, err := n.callsBox(ctx, what, b.Device)
		if err != nil {
			return nil, err
		}
		if means {
			found = append(found, b.Device)
		}
	}
	switch len(found) {
	case 0:
		return nil, refusal(delivery.ErrNoBox)
	case 1:
	default:
		return nil, &control.Error{Code: control.Ambiguous, Message: fmt.Sprintf("%d mailboxes are called %q", len(found), what), Hint: "give the beginning of its ID, from `hima mailbox list`"}
	}
	b, err := n.u.mail.Remove(ctx, found[0])
	if err != nil {
		return nil, refusal(err)
	}
	m, err := n.box(ctx, b)
	return &pb.RemoveMailboxResponse{Mailbox: m}, err
}

// OfferMailbox implements server.Network.
func (n networking) OfferMailbox(ctx context.Context, in *pb.OfferMailboxRequest) (*pb.OfferMailboxResponse, error) {
	o, err := n.u.messenger.OfferMailbox(ctx, in.GetWho(), in.GetQuotaBytes())
	if err != nil {
		return nil, err
	}
	out := &pb.MailboxOffer{Account: o.Account.String(), Name: o.Name, QuotaBytes: o.Quota}
	grants, err := n.u.mail.Grants()
	if err != nil {
		return nil, err
	}
	for _, g := range grants {
		if g.Account == o.Account {
			bytes, items := n.u.server.Usage(g.Grant[:])
			out.UsedBytes, out.Items = bytes, int32(items)
		}
	}
	return &pb.OfferMailboxResponse{Offer: out}, nil
}
