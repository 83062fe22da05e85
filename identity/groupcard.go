package identity

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"hima/internal/wire/pb"
)

// GroupCard is what the owner of a public group tells of it: checked as far as that is possible without the group (R34).
// That the account owned the group once is certain; whether it still does says the group's own acts. The size is claimed.
type GroupCard struct {
	Group       GroupID
	Genesis     []byte          // the header that the group's ID is the hash of
	Transfers   []TransferProof // from the founder to Account, at most MaxTransfers
	Account     AccountID       // the owner
	Certificate Certificate     // of the device of Account that signed
	Name        string
	Description string
	Size        uint32
	Join        string         // invite, apply, open
	Admins      []GroupContact // whom to ask, at most MaxGroupContacts
	Time        time.Time
	Expires     time.Time // at most GroupCardLifetime after Time
	raw         string
}

// NewGroupCard signs a card with a device's key. Account is that of the certificate, Group is the hash of the genesis.
// Loops in the transfers are cut out, so that a group that went to and fro does not run into their bound.
func NewGroupCard(key DeviceKey, c GroupCard) (GroupCard, error) {
	c, err := newGroupCard(key, c)
	if err != nil {
		return GroupCard{}, fmt.Errorf("making group card: %w", err)
	}
	return c, nil
}

func newGroupCard(key DeviceKey, c GroupCard) (GroupCard, error) {
	ms, expires := toMillis(c.Time), toMillis(c.Expires)
	c.Account, c.Time, c.Expires = c.Certificate.Account, time.UnixMilli(ms).UTC(), time.UnixMilli(expires).UTC()
	c.Group, c.Genesis = sha256.Sum256(c.Genesis), bytes.Clone(c.Genesis)
	founder, err := founderOf(c.Genesis)
	if err != nil {
		return GroupCard{}, err
	}
	c.Transfers = withoutLoops(founder, c.Transfers)
	m := &pb.GroupCard{
		Group: c.Group.Bytes(), Genesis: c.Genesis, Account: c.Account.Bytes(), Certificate: c.Certificate.Raw(),
		Name: c.Name, Description: c.Description, Size: c.Size, Join: c.Join, Admins: GroupContactsPB(c.Admins),
		TimeMs: ms, ExpiresMs: expires,
	}
	for _, p := range c.Transfers {
		m.Transfers = append(m.Transfers, p.Raw())
	}
	if c.Admins, err = GroupContactsFromPB(m.Admins); err != nil {
		return GroupCard{}, err
	}
	if err := c.check(founder); err != nil {
		return GroupCard{}, err
	}
	if err := signsFor(key, c.Certificate); err != nil {
		return GroupCard{}, err
	}
	payload := encode(m)
	raw := appendSigned(payload, key.Sign(DomainGroupCard, payload))
	if len(raw) > MaxGroupCard {
		return GroupCard{}, fmt.Errorf("%d bytes: %w", len(raw), ErrMalformed)
	}
	c.raw = string(raw)
	return c, nil
}

// founderOf reads a genesis header as far as a card needs it. The rest of the header is judged by those who hold the
// group; its bytes cannot differ, since their hash is the group's ID.
func founderOf(genesis []byte) (AccountID, error) {
	if len(genesis) == 0 || len(genesis) > MaxGenesis {
		return AccountID{}, fmt.Errorf("genesis of %d bytes: %w", len(genesis), ErrMalformed)
	}
	var h pb.Header
	if err := proto.Unmarshal(genesis, &h); err != nil {
		return AccountID{}, fmt.Errorf("genesis: %w: %w", ErrMalformed, err)
	}
	// One encoding only, as the feed's own reader has it, so that nobody reads another founder from the same bytes.
	if again, err := (proto.MarshalOptions{Deterministic: true}).Marshal(&h); err != nil || !bytes.Equal(again, genesis) {
		return AccountID{}, fmt.Errorf("genesis in another encoding: %w", ErrMalformed)
	}
	if len(h.Conversation) != 0 || h.Feed != 1 || h.Seq != 1 || h.Kind != genesisKind || len(h.Nonce) != 32 || len(h.Parents) != 0 {
		return AccountID{}, fmt.Errorf("not a genesis: %w", ErrMalformed)
	}
	c, err := ParseCertificate(h.Certificate)
	if err != nil {
		return AccountID{}, err
	}
	if !bytes.Equal(c.Account[:], h.Account) || !bytes.Equal(c.Device[:], h.Device) {
		return AccountID{}, fmt.Errorf("genesis with a certificate of another device: %w", ErrMalformed)
	}
	return c.Account, nil
}

// genesisKind is the kind of entry that begins a group; package feed has it as KindGroupCreate.
const genesisKind = 64

// withoutLoops leaves out the transfers between two moments at which the same account owned the group. What does not join
// on is kept, to be refused.
func withoutLoops(founder AccountID, all []TransferProof) []TransferProof {
	out := slices.Clone(all)
	for i := 0; i < len(out); i++ {
		owner := founder
		if i > 0 {
			owner = out[i-1].To
		}
		for j := len(out) - 1; j >= i; j-- {
			if out[j].To == owner {
				out = slices.Delete(out, i, j+1)
				i--
				break
			}
		}
	}
	return out
}

func (c *GroupCard) check(founder AccountID) error {
	if c.Group != GroupID(sha256.Sum256(c.Genesis)) {
		return fmt.Errorf("genesis of another group: %w", ErrMalformed)
	}
	if len(c.Transfers) > MaxTransfers {
		return fmt.Errorf("%d transfers: %w", len(c.Transfers), ErrMalformed)
	}
	owner := founder
	for _, p := range c.Transfers {
		if p.Group != c.Group || p.From != owner {
			return fmt.Errorf("transfer that does not join on: %w", ErrMalformed)
		}
		owner = p.To
	}
	if owner != c.Account {
		return fmt.Errorf("signed by somebody who is not the owner: %w", ErrMalformed)
	}
	switch {
	case c.Name == "" || len(c.Name) > MaxGroupName || !utf8.ValidString(c.Name):
		return fmt.Errorf("name of %d bytes: %w", len(c.Name), ErrMalformed)
	case len(c.Description) > MaxCardDescription || !utf8.ValidString(c.Description):
		return fmt.Errorf("description of %d bytes: %w", len(c.Description), ErrMalformed)
	case c.Join != "invite" && c.Join != "apply" && c.Join != "open":
		return fmt.Errorf("join policy: %w", ErrMalformed)
	}
	return checkLife(c.Time, c.Expires, GroupCardLifetime)
}

// ParseGroupCard checks signed bytes: size, shape, bounds, that the group is the hash of the genesis, every transfer from
// the founder to the account named, its certificate and the signature. Whether the time is over says Validate.
func ParseGroupCard(raw []byte) (GroupCard, error) {
	c, err := parseGroupCard(raw)
	if err != nil {
		return GroupCard{}, fmt.Errorf("reading group card: %w", err)
	}
	return c, nil
}

func parseGroupCard(raw []byte) (GroupCard, error) {
	payload, sig, err := parseSigned(raw, MaxGroupCard)
	if err != nil {
		return GroupCard{}, err
	}
	var m pb.GroupCard
	if err := decode(payload, &m); err != nil {
		return GroupCard{}, err
	}
	c := GroupCard{Genesis: m.Genesis, Name: m.Name, Description: m.Description, Size: m.Size, Join: m.Join, raw: string(raw)}
	if c.Group, err = GroupIDFromBytes(m.Group); err != nil {
		return GroupCard{}, err
	}
	if c.Account, err = AccountIDFromBytes(m.Account); err != nil {
		return GroupCard{}, err
	}
	if c.Time, err = fromMillis(m.TimeMs); err != nil {
		return GroupCard{}, err
	}
	if c.Expires, err = fromMillis(m.ExpiresMs); err != nil {
		return GroupCard{}, err
	}
	if c.Admins, err = GroupContactsFromPB(m.Admins); err != nil {
		return GroupCard{}, err
	}
	// The card's own signature comes before the up to thirty-four others, so that junk costs two checks.
	if c.Certificate, err = certifiedBy(m.Certificate, DomainGroupCard, payload, sig); err != nil {
		return GroupCard{}, err
	}
	if c.Certificate.Account != c.Account {
		return GroupCard{}, fmt.Errorf("certificate of another account: %w", ErrMalformed)
	}
	if len(m.Transfers) > MaxTransfers {
		return GroupCard{}, fmt.Errorf("%d transfers: %w", len(m.Transfers), ErrMalformed)
	}
	for _, b := range m.Transfers {
		p, err := parseTransferProof(b)
		if err != nil {
			return GroupCard{}, err
		}
		c.Transfers = append(c.Transfers, p)
	}
	founder, err := founderOf(c.Genesis)
	if err != nil {
		return GroupCard{}, err
	}
	return c, c.check(founder)
}

// Validate returns ErrExpired or ErrFromFuture for a card that does not count at a time.
func (c GroupCard) Validate(now time.Time) error { return validAt(now, c.Time, c.Expires) }

// Supersedes tells whether the card speaks of a later time of the same group than another: its transfers go on where the
// other's end, or they are the same and it was made later. Two cards of one group neither of which supersedes the other
// are a dispute, which only the group's own acts decide.
func (c GroupCard) Supersedes(other GroupCard) bool {
	if c.Group != other.Group || len(c.Transfers) < len(other.Transfers) {
		return false
	}
	for i, p := range other.Transfers {
		if c.Transfers[i].To != p.To {
			return false
		}
	}
	return len(c.Transfers) > len(other.Transfers) || c.Time.After(other.Time)
}

// Raw returns a copy of the signed bytes.
func (c GroupCard) Raw() []byte { return []byte(c.raw) }

// IsZero tells whether there is no card.
func (c GroupCard) IsZero() bool { return c.raw == "" }
