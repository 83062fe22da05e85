package identity

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"unicode/utf8"

	"hima/internal/wire/pb"
)

// InviteToken is the right to ask that a link carries. Text form: 32 hexadecimal digits. It is meant to be handed on
// and therefore does not redact itself.
type InviteToken [16]byte

// NewInviteToken makes a random token.
func NewInviteToken() (t InviteToken) {
	rand.Read(t[:])
	return t
}

// String returns the text form.
func (t InviteToken) String() string { return hex.EncodeToString(t[:]) }

// IsZero tells whether there is no token.
func (t InviteToken) IsZero() bool { return t == InviteToken{} }

// ParseInviteToken reads the text form.
func ParseInviteToken(s string) (t InviteToken, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(t) {
		return t, fmt.Errorf("reading invite token: %w", ErrMalformed)
	}
	copy(t[:], b)
	return t, nil
}

// Invite is the content of a hima: link. It is signed by nobody: it says whom to ask for and where they may be, and
// whoever answers proves to be that account.
type Invite struct {
	Account  AccountID
	Token    InviteToken // zero: the link is an address only
	Username string      // a hint from the link, never trusted
	Devices  []InviteDevice
	Networks []NetworkLink // at most MaxInviteNetworks: where a newcomer finds the inviter
}

// InviteDevice is a device of the inviter and where it was reachable.
type InviteDevice struct {
	Device DeviceID
	Addrs  []string // multiaddrs
}

const (
	inviteScheme  = "hima:"
	inviteVersion = 1
)

// String returns the link. Devices, addresses and networks beyond the bounds, and addresses that do not parse, are left
// out.
func (in Invite) String() string {
	m := &pb.Invite{Account: in.Account.Bytes(), Username: in.Username}
	if !in.Token.IsZero() {
		m.Token = in.Token[:]
	}
	if len(m.Username) > MaxUsernameBytes || !utf8.ValidString(m.Username) {
		m.Username = ""
	}
	m.Devices = packDevices(in.Devices, MaxInviteDevices)
	for _, l := range in.Networks[:min(len(in.Networks), MaxInviteNetworks)] {
		if l.check() == nil {
			m.Networks = append(m.Networks, l.pb())
		}
	}
	return inviteKind().text(append([]byte{inviteVersion}, encode(m)...))
}

// ParseInvite reads a link: white space and line breaks anywhere in it, and case, do not matter.
func ParseInvite(s string) (Invite, error) {
	in, err := parseInvite(s)
	if err != nil {
		return Invite{}, fmt.Errorf("reading invite link: %w", err)
	}
	return in, nil
}

func parseInvite(s string) (Invite, error) {
	b, err := inviteKind().content(s)
	if err != nil {
		return Invite{}, err
	}
	var m pb.Invite
	if err := decode(b, &m); err != nil {
		return Invite{}, err
	}
	return inviteFromPB(&m)
}

func inviteFromPB(m *pb.Invite) (Invite, error) {
	var in Invite
	var err error
	if in.Account, err = AccountIDFromBytes(m.Account); err != nil {
		return Invite{}, err
	}
	if n := copy(in.Token[:], m.Token); len(m.Token) != n || n != 0 && n != len(in.Token) {
		return Invite{}, fmt.Errorf("token of %d bytes: %w", len(m.Token), ErrMalformed)
	}
	if len(m.Username) > MaxUsernameBytes || len(m.Networks) > MaxInviteNetworks {
		return Invite{}, fmt.Errorf("name of %d bytes, %d networks: %w", len(m.Username), len(m.Networks), ErrMalformed)
	}
	in.Username = m.Username
	if in.Devices, err = unpackDevices(m.Devices, MaxInviteDevices); err != nil {
		return Invite{}, err
	}
	for _, ml := range m.Networks {
		l, err := networkLinkFromPB(ml)
		if err != nil {
			return Invite{}, err
		}
		in.Networks = append(in.Networks, l)
	}
	return in, nil
}
