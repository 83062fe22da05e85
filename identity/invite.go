package identity

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	ma "github.com/multiformats/go-multiaddr"

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
}

// InviteDevice is a device of the inviter and where it was reachable.
type InviteDevice struct {
	Device DeviceID
	Addrs  []string // multiaddrs
}

const (
	inviteScheme  = "hima:"
	inviteVersion = 1
	inviteSum     = 4 // bytes of checksum
)

// inviteEncoding is base32 because upper and lower case mean the same, so that a QR code is small, and because it has
// no character that a chat program takes as punctuation.
func inviteEncoding() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

func inviteChecksum(b []byte) []byte {
	sum := sha256.Sum256(append([]byte("hima/invite/1\x00"), b...))
	return sum[:inviteSum]
}

// String returns the link. Devices and addresses beyond the bounds, and addresses that do not parse, are left out.
func (in Invite) String() string {
	m := &pb.Invite{Account: in.Account.Bytes(), Username: in.Username}
	if !in.Token.IsZero() {
		m.Token = in.Token[:]
	}
	if len(m.Username) > MaxUsernameBytes || !utf8.ValidString(m.Username) {
		m.Username = ""
	}
	for _, d := range in.Devices[:min(len(in.Devices), MaxInviteDevices)] {
		md := &pb.InviteDevice{Device: d.Device.Bytes()}
		for _, s := range d.Addrs {
			a, err := ma.NewMultiaddr(s)
			if err != nil || len(a) == 0 || len(a.Bytes()) > MaxInviteAddrBytes || len(md.Addrs) == MaxInviteAddrs {
				continue
			}
			md.Addrs = append(md.Addrs, a.Bytes())
		}
		m.Devices = append(m.Devices, md)
	}
	return inviteLink(append([]byte{inviteVersion}, encode(m)...))
}

// inviteLink writes version and content as text, with their checksum.
func inviteLink(b []byte) string {
	return inviteScheme + inviteEncoding().EncodeToString(append(b, inviteChecksum(b)...))
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
	if len(s) > MaxInviteText {
		return Invite{}, fmt.Errorf("%d bytes: %w", len(s), ErrMalformed)
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || r == '\u200b' || r == '\ufeff' {
			return -1
		}
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
	text, ok := strings.CutPrefix(s, inviteScheme)
	if !ok {
		return Invite{}, fmt.Errorf("does not begin with %s: %w", inviteScheme, ErrMalformed)
	}
	b, err := inviteEncoding().DecodeString(text)
	if err != nil || len(b) < 1+inviteSum || inviteEncoding().EncodeToString(b) != text {
		return Invite{}, fmt.Errorf("not in base32: %w", ErrMalformed)
	}
	b, sum := b[:len(b)-inviteSum], b[len(b)-inviteSum:]
	if !bytes.Equal(sum, inviteChecksum(b)) {
		return Invite{}, fmt.Errorf("checksum, the link is not complete: %w", ErrMalformed)
	}
	if b[0] != inviteVersion {
		return Invite{}, fmt.Errorf("version %d: %w", b[0], ErrMalformed)
	}
	var m pb.Invite
	if err := decode(b[1:], &m); err != nil {
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
	if len(m.Username) > MaxUsernameBytes || len(m.Devices) > MaxInviteDevices {
		return Invite{}, fmt.Errorf("name of %d bytes, %d devices: %w", len(m.Username), len(m.Devices), ErrMalformed)
	}
	in.Username = m.Username
	for _, md := range m.Devices {
		d := InviteDevice{}
		if d.Device, err = DeviceIDFromBytes(md.Device); err != nil {
			return Invite{}, err
		}
		if len(md.Addrs) > MaxInviteAddrs {
			return Invite{}, fmt.Errorf("%d addresses: %w", len(md.Addrs), ErrMalformed)
		}
		for _, b := range md.Addrs {
			if len(b) > MaxInviteAddrBytes {
				return Invite{}, fmt.Errorf("address of %d bytes: %w", len(b), ErrMalformed)
			}
			a, err := ma.NewMultiaddrBytes(b)
			if err != nil {
				return Invite{}, fmt.Errorf("address: %w: %w", ErrMalformed, err)
			}
			d.Addrs = append(d.Addrs, a.String())
		}
		in.Devices = append(in.Devices, d)
	}
	return in, nil
}
