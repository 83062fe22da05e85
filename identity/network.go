package identity

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"hima/internal/wire/pb"
)

// NetworkID names a network: nodes that share bootstrap nodes, and a DHT with them. It is a hash of the network's name and
// of its first bootstrap node's key, so that nobody else can make a network of the same ID. Text form: base32 in lower
// case, 52 characters.
type NetworkID [32]byte

// NewNetworkID returns the ID of the network that founder started under a name.
func NewNetworkID(name string, founder DeviceID) NetworkID {
	b := make([]byte, 0, 16+len(name)+len(founder))
	b = append(b, "hima/network/1\x00"...)
	b = append(b, byte(len(name)))
	b = append(b, name...)
	return sha256.Sum256(append(b, founder[:]...))
}

// String returns the text form.
func (n NetworkID) String() string { return linkEncoding().EncodeToString(n[:]) }

// Short returns the beginning of the text form, for people and logs.
func (n NetworkID) Short() string { return n.String()[:8] + "…" }

// IsZero tells whether n is no network at all.
func (n NetworkID) IsZero() bool { return n == NetworkID{} }

// Bytes returns a copy of the hash.
func (n NetworkID) Bytes() []byte { return bytes.Clone(n[:]) }

// MarshalText implements encoding.TextMarshaler.
func (n NetworkID) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *NetworkID) UnmarshalText(b []byte) error {
	id, err := ParseNetworkID(string(b))
	if err == nil {
		*n = id
	}
	return err
}

// ParseNetworkID reads the text form.
func ParseNetworkID(s string) (NetworkID, error) {
	b, err := linkEncoding().DecodeString(s)
	if err != nil || linkEncoding().EncodeToString(b) != s {
		return NetworkID{}, fmt.Errorf("reading network ID: not in base32: %w", ErrMalformed)
	}
	return NetworkIDFromBytes(b)
}

// NetworkIDFromBytes reads the 32 bytes of an ID.
func NetworkIDFromBytes(b []byte) (NetworkID, error) {
	if len(b) != len(NetworkID{}) {
		return NetworkID{}, fmt.Errorf("reading network ID: %d bytes: %w", len(b), ErrMalformed)
	}
	return NetworkID(b), nil
}

// NetworkLink is the content of a hima-net: link: what somebody needs to join. Nobody signs it; who hands it on vouches
// for it, and everything that is then believed of the network is signed by the keys in it.
type NetworkLink struct {
	Name       string
	Founder    DeviceID       // key of the network's first bootstrap node
	Bootstraps []InviteDevice // 1 to MaxBootstraps; they need not include the founder
}

const (
	networkScheme  = "hima-net:"
	networkVersion = 1
)

// ID returns the ID of the network.
func (l NetworkLink) ID() NetworkID { return NewNetworkID(l.Name, l.Founder) }

// Keys returns the keys that stamp names on the network: the founder's first, then those of the bootstrap nodes.
func (l NetworkLink) Keys() []DeviceID {
	keys := []DeviceID{l.Founder}
	for _, b := range l.Bootstraps {
		if !slices.Contains(keys, b.Device) {
			keys = append(keys, b.Device)
		}
	}
	return keys
}

// String returns the link. Bootstrap nodes and addresses beyond the bounds, and addresses that do not parse, are left out.
// A link without bootstrap nodes, or with a name out of bounds, has no text.
func (l NetworkLink) String() string {
	if l.check() != nil {
		return ""
	}
	return networkKind().text(append([]byte{networkVersion}, encode(l.pb())...))
}

func (l NetworkLink) pb() *pb.NetworkLink {
	return &pb.NetworkLink{Name: l.Name, Founder: l.Founder.Bytes(), Bootstraps: packDevices(l.Bootstraps, MaxBootstraps)}
}

func (l NetworkLink) check() error {
	if err := checkNetworkName(l.Name); err != nil {
		return err
	}
	if len(l.Bootstraps) == 0 {
		return fmt.Errorf("no bootstrap node: %w", ErrMalformed)
	}
	for i, b := range l.Bootstraps {
		if slices.ContainsFunc(l.Bootstraps[:i], func(o InviteDevice) bool { return o.Device == b.Device }) {
			return fmt.Errorf("bootstrap node named twice: %w", ErrMalformed)
		}
	}
	return nil
}

func checkNetworkName(name string) error {
	if name == "" || len(name) > MaxNetworkName || !utf8.ValidString(name) {
		return fmt.Errorf("network name of %d bytes: %w", len(name), ErrMalformed)
	}
	return nil
}

// ParseNetworkLink reads a link: white space and line breaks anywhere in it, and case, do not matter.
func ParseNetworkLink(s string) (NetworkLink, error) {
	l, err := parseNetworkLink(s)
	if err != nil {
		return NetworkLink{}, fmt.Errorf("reading network link: %w", err)
	}
	return l, nil
}

func parseNetworkLink(s string) (NetworkLink, error) {
	b, err := networkKind().content(s)
	if err != nil {
		return NetworkLink{}, err
	}
	var m pb.NetworkLink
	if err := decode(b, &m); err != nil {
		return NetworkLink{}, err
	}
	return networkLinkFromPB(&m)
}

func networkLinkFromPB(m *pb.NetworkLink) (NetworkLink, error) {
	l := NetworkLink{Name: m.GetName()}
	var err error
	if l.Founder, err = DeviceIDFromBytes(m.GetFounder()); err != nil {
		return NetworkLink{}, err
	}
	if l.Bootstraps, err = unpackDevices(m.GetBootstraps(), MaxBootstraps); err != nil {
		return NetworkLink{}, err
	}
	return l, l.check()
}

// NetworkCard is a bootstrap node's checked statement of the network it serves, and how.
type NetworkCard struct {
	Name    string
	Founder DeviceID
	Device  DeviceID // the signer
	Serves  []string // dht, relay, mailbox, names
	Time    time.Time
	Agent   string
	Addrs   []string // multiaddrs, without the device's ID at the end
	raw     string
}

// NewNetworkCard signs a card with the bootstrap node's key, which becomes its Device.
func NewNetworkCard(key DeviceKey, c NetworkCard) (NetworkCard, error) {
	ms := toMillis(c.Time)
	out := NetworkCard{Name: c.Name, Founder: c.Founder, Device: key.ID(), Serves: slices.Clone(c.Serves), Time: time.UnixMilli(ms).UTC(), Agent: c.Agent}
	addrs := packAddrs(c.Addrs, MaxInviteAddrs)
	err := out.check()
	if err == nil {
		out.Addrs, err = unpackAddrs(addrs, MaxInviteAddrs)
	}
	if err != nil {
		return NetworkCard{}, fmt.Errorf("making network card: %w", err)
	}
	payload := encode(&pb.NetworkCard{
		Name: out.Name, Founder: out.Founder.Bytes(), Device: out.Device.Bytes(), Serves: out.Serves,
		TimeMs: ms, Agent: out.Agent, Addrs: addrs,
	})
	out.raw = string(appendSigned(payload, key.Sign(DomainNetworkCard, payload)))
	return out, nil
}

func (c NetworkCard) check() error {
	if err := checkNetworkName(c.Name); err != nil {
		return err
	}
	if len(c.Serves) > MaxServes || len(c.Agent) > MaxAgent || !utf8.ValidString(c.Agent) {
		return fmt.Errorf("%d services, agent of %d bytes: %w", len(c.Serves), len(c.Agent), ErrMalformed)
	}
	for _, s := range c.Serves {
		if s == "" || len(s) > MaxServiceName || !utf8.ValidString(s) {
			return fmt.Errorf("service of %d bytes: %w", len(s), ErrMalformed)
		}
	}
	return nil
}

// ParseNetworkCard checks signed bytes: size, shape, bounds and the signature of the device named in it. Whether that is
// who answered, and whether the network is the one asked for, is for the caller to compare.
func ParseNetworkCard(raw []byte) (NetworkCard, error) {
	c, err := parseNetworkCard(raw)
	if err != nil {
		return NetworkCard{}, fmt.Errorf("reading network card: %w", err)
	}
	return c, nil
}

func parseNetworkCard(raw []byte) (NetworkCard, error) {
	payload, sig, err := parseSigned(raw, MaxNetworkCard)
	if err != nil {
		return NetworkCard{}, err
	}
	var m pb.NetworkCard
	if err := decode(payload, &m); err != nil {
		return NetworkCard{}, err
	}
	c := NetworkCard{Name: m.Name, Serves: m.Serves, Agent: m.Agent, raw: string(raw)}
	if c.Founder, err = DeviceIDFromBytes(m.Founder); err != nil {
		return NetworkCard{}, err
	}
	if c.Device, err = DeviceIDFromBytes(m.Device); err != nil {
		return NetworkCard{}, err
	}
	if c.Time, err = fromMillis(m.TimeMs); err != nil {
		return NetworkCard{}, err
	}
	if err := c.check(); err != nil {
		return NetworkCard{}, err
	}
	if c.Addrs, err = unpackAddrs(m.Addrs, MaxInviteAddrs); err != nil {
		return NetworkCard{}, err
	}
	if !c.Device.Verify(DomainNetworkCard, payload, sig) {
		return NetworkCard{}, ErrBadSignature
	}
	return c, nil
}

// Raw returns a copy of the signed bytes.
func (c NetworkCard) Raw() []byte { return []byte(c.raw) }

// IsZero tells whether there is no card.
func (c NetworkCard) IsZero() bool { return c.raw == "" }

// Network returns the ID of the network that the card speaks of.
func (c NetworkCard) Network() NetworkID { return NewNetworkID(c.Name, c.Founder) }

// Link returns a link of the network with the signer as its only bootstrap node.
func (c NetworkCard) Link() NetworkLink {
	return NetworkLink{Name: c.Name, Founder: c.Founder, Bootstraps: []InviteDevice{{Device: c.Device, Addrs: slices.Clone(c.Addrs)}}}
}
