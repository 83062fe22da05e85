package identity

import (
	"fmt"
	"time"
	"unicode/utf8"

	"hima/internal/wire/pb"
)

// GroupContact is somebody who answers for a group, and where they may be.
type GroupContact struct {
	Account AccountID
	Devices []InviteDevice // at most MaxInviteDevices
}

// PB returns the message. Devices and addresses beyond the bounds, and addresses that do not parse, are left out.
func (c GroupContact) PB() *pb.GroupContact {
	return &pb.GroupContact{Account: c.Account.Bytes(), Devices: packDevices(c.Devices, MaxInviteDevices)}
}

// GroupContactFromPB checks a message: shape and bounds. None at all is malformed.
func GroupContactFromPB(m *pb.GroupContact) (GroupContact, error) {
	var c GroupContact
	var err error
	if c.Account, err = AccountIDFromBytes(m.GetAccount()); err != nil {
		return GroupContact{}, fmt.Errorf("reading group contact: %w", err)
	}
	if c.Devices, err = unpackDevices(m.GetDevices(), MaxInviteDevices); err != nil {
		return GroupContact{}, fmt.Errorf("reading group contact: %w", err)
	}
	return c, nil
}

// GroupContactsFromPB checks at most MaxGroupContacts messages.
func GroupContactsFromPB(ms []*pb.GroupContact) ([]GroupContact, error) {
	if len(ms) > MaxGroupContacts {
		return nil, fmt.Errorf("reading group contacts: %d: %w", len(ms), ErrMalformed)
	}
	var out []GroupContact
	for _, m := range ms {
		c, err := GroupContactFromPB(m)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// GroupContactsPB returns the messages of the first MaxGroupContacts.
func GroupContactsPB(cs []GroupContact) []*pb.GroupContact {
	var out []*pb.GroupContact
	for _, c := range cs[:min(len(cs), MaxGroupContacts)] {
		out = append(out, c.PB())
	}
	return out
}

// NetworkLinksPB returns the messages of the first MaxInviteNetworks links; a link without text is left out.
func NetworkLinksPB(links []NetworkLink) []*pb.NetworkLink {
	var out []*pb.NetworkLink
	for _, l := range links[:min(len(links), MaxInviteNetworks)] {
		if l.check() == nil {
			out = append(out, l.pb())
		}
	}
	return out
}

// NetworkLinksFromPB checks at most MaxInviteNetworks messages.
func NetworkLinksFromPB(ms []*pb.NetworkLink) ([]NetworkLink, error) {
	if len(ms) > MaxInviteNetworks {
		return nil, fmt.Errorf("reading network links: %d: %w", len(ms), ErrMalformed)
	}
	var out []NetworkLink
	for _, m := range ms {
		l, err := networkLinkFromPB(m)
		if err != nil {
			return nil, fmt.Errorf("reading network links: %w", err)
		}
		out = append(out, l)
	}
	return out, nil
}

// GroupLink is the content of a hima-group: link: a right to ask to be let in, never a key. It is signed by nobody: it
// says whom to ask and where they may be, and whoever is asked decides whether the token counts.
type GroupLink struct {
	Group    GroupID
	Name     string       // a hint from the link, never trusted
	Token    InviteToken  // zero: the link is an address only
	Asks     GroupContact // who made the link
	Networks []NetworkLink
	Expires  time.Time // zero: never; a hint, who made the link decides
}

const (
	groupScheme  = "hima-group:"
	groupVersion = 1
)

func groupKind() linkKind { return linkKind{groupScheme, "hima/group-link/1", groupVersion} }

// String returns the link. What is beyond the bounds or does not parse is left out. A link of no group or with nobody to
// ask has no text.
func (l GroupLink) String() string {
	if l.Group.IsZero() || l.Asks.Account.IsZero() {
		return ""
	}
	m := &pb.GroupLink{Group: l.Group.Bytes(), Name: l.Name, Asks: l.Asks.PB(), Networks: NetworkLinksPB(l.Networks)}
	if len(m.Name) > MaxGroupName || !utf8.ValidString(m.Name) {
		m.Name = ""
	}
	if !l.Token.IsZero() {
		m.Token = l.Token[:]
	}
	if !l.Expires.IsZero() {
		m.ExpiresMs = toMillis(l.Expires)
	}
	return groupKind().text(append([]byte{groupVersion}, encode(m)...))
}

// ParseGroupLink reads a link: white space and line breaks anywhere in it, and case, do not matter.
func ParseGroupLink(s string) (GroupLink, error) {
	l, err := parseGroupLink(s)
	if err != nil {
		return GroupLink{}, fmt.Errorf("reading group link: %w", err)
	}
	return l, nil
}

func parseGroupLink(s string) (GroupLink, error) {
	b, err := groupKind().content(s)
	if err != nil {
		return GroupLink{}, err
	}
	var m pb.GroupLink
	if err := decode(b, &m); err != nil {
		return GroupLink{}, err
	}
	l := GroupLink{Name: m.Name}
	if l.Group, err = GroupIDFromBytes(m.Group); err != nil {
		return GroupLink{}, err
	}
	if len(m.Name) > MaxGroupName {
		return GroupLink{}, fmt.Errorf("name of %d bytes: %w", len(m.Name), ErrMalformed)
	}
	if n := copy(l.Token[:], m.Token); len(m.Token) != n || n != 0 && n != len(l.Token) {
		return GroupLink{}, fmt.Errorf("token of %d bytes: %w", len(m.Token), ErrMalformed)
	}
	if l.Asks, err = GroupContactFromPB(m.Asks); err != nil {
		return GroupLink{}, err
	}
	if l.Networks, err = NetworkLinksFromPB(m.Networks); err != nil {
		return GroupLink{}, err
	}
	if m.ExpiresMs != 0 {
		if l.Expires, err = fromMillis(m.ExpiresMs); err != nil {
			return GroupLink{}, err
		}
	}
	return l, nil
}
