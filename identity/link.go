package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"
	"unicode"

	ma "github.com/multiformats/go-multiaddr"

	"hima/internal/wire/pb"
)

// A link is a scheme and base32 text of one version byte, a message and a checksum. The checksum's domain is the kind of
// link, so that one kind with another's scheme in front does not pass.

const linkSum = 4 // bytes of checksum

type linkKind struct {
	scheme, domain string
	version        byte
}

func inviteKind() linkKind  { return linkKind{inviteScheme, "hima/invite/1", inviteVersion} }
func networkKind() linkKind { return linkKind{networkScheme, "hima/network-link/1", networkVersion} }

// linkEncoding is base32 because upper and lower case mean the same, so that a QR code is small, and because it has
// no character that a chat program takes as punctuation.
func linkEncoding() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

func (k linkKind) checksum(b []byte) []byte {
	sum := sha256.Sum256(append([]byte(k.domain+"\x00"), b...))
	return sum[:linkSum]
}

// text writes version and content as text, with their checksum.
func (k linkKind) text(b []byte) string {
	return k.scheme + linkEncoding().EncodeToString(append(b, k.checksum(b)...))
}

// content reads the text of a link and returns the message in it: white space and line breaks anywhere, and case, do not
// matter.
func (k linkKind) content(s string) ([]byte, error) {
	if len(s) > MaxInviteText {
		return nil, fmt.Errorf("%d bytes: %w", len(s), ErrMalformed)
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
	text, ok := strings.CutPrefix(s, k.scheme)
	if !ok {
		return nil, fmt.Errorf("does not begin with %s: %w", k.scheme, ErrMalformed)
	}
	b, err := linkEncoding().DecodeString(text)
	if err != nil || len(b) < 1+linkSum || linkEncoding().EncodeToString(b) != text {
		return nil, fmt.Errorf("not in base32: %w", ErrMalformed)
	}
	b, sum := b[:len(b)-linkSum], b[len(b)-linkSum:]
	if !bytes.Equal(sum, k.checksum(b)) {
		return nil, fmt.Errorf("checksum, the link is not complete: %w", ErrMalformed)
	}
	if b[0] != k.version {
		return nil, fmt.Errorf("version %d: %w", b[0], ErrMalformed)
	}
	return b[1:], nil
}

// packAddrs gives at most limit addresses their binary form. What does not parse or is too long is left out: an address is
// a hint, and one bad hint must not cost the others.
func packAddrs(addrs []string, limit int) [][]byte {
	var out [][]byte
	for _, s := range addrs {
		a, err := ma.NewMultiaddr(s)
		if err != nil || len(a) == 0 || len(a.Bytes()) > MaxInviteAddrBytes || len(out) == limit {
			continue
		}
		out = append(out, a.Bytes())
	}
	return out
}

// unpackAddrs is the reverse, for bytes of others: there a bad address makes the whole malformed.
func unpackAddrs(addrs [][]byte, limit int) ([]string, error) {
	if len(addrs) > limit {
		return nil, fmt.Errorf("%d addresses: %w", len(addrs), ErrMalformed)
	}
	var out []string
	for _, b := range addrs {
		if len(b) > MaxInviteAddrBytes {
			return nil, fmt.Errorf("address of %d bytes: %w", len(b), ErrMalformed)
		}
		a, err := ma.NewMultiaddrBytes(b)
		if err != nil || len(a) == 0 {
			return nil, fmt.Errorf("address: %w", ErrMalformed)
		}
		out = append(out, a.String())
	}
	return out, nil
}

func packDevices(devices []InviteDevice, limit int) []*pb.InviteDevice {
	var out []*pb.InviteDevice
	for _, d := range devices[:min(len(devices), limit)] {
		out = append(out, &pb.InviteDevice{Device: d.Device.Bytes(), Addrs: packAddrs(d.Addrs, MaxInviteAddrs)})
	}
	return out
}

func unpackDevices(devices []*pb.InviteDevice, limit int) ([]InviteDevice, error) {
	if len(devices) > limit {
		return nil, fmt.Errorf("%d devices: %w", len(devices), ErrMalformed)
	}
	var out []InviteDevice
	for _, m := range devices {
		var d InviteDevice
		var err error
		if d.Device, err = DeviceIDFromBytes(m.GetDevice()); err != nil {
			return nil, err
		}
		if d.Addrs, err = unpackAddrs(m.GetAddrs(), MaxInviteAddrs); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}
