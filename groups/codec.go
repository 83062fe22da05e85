package groups

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
)

// ParseAct reads a control entry of a group and checks all that can be seen without the group's other entries: the shape, and
// the proofs of consent and of a transfer. It returns ErrAct.
func ParseAct(e *feed.Entry) (roster.Act, error) {
	a := roster.Act{ID: roster.ID(e.ID), Author: e.Account, Device: e.Device}
	for _, p := range e.Parents {
		a.Parents = append(a.Parents, roster.ID(p))
	}
	content, err := e.Content()
	if err == nil && e.Number != feed.Control {
		err = errors.New("no control entry")
	}
	if err == nil {
		err = parseContent(&a, e, content)
	}
	if err != nil {
		return roster.Act{}, fmt.Errorf("reading act of kind %d: %w: %w", e.Kind, ErrAct, err)
	}
	return a, nil
}

func parseContent(a *roster.Act, e *feed.Entry, content []byte) error {
	switch e.Kind {
	case feed.KindGroupCreate:
		a.Kind = roster.Create
		if e.Nonce == nil {
			return errors.New("no genesis")
		}
		return proto.Unmarshal(content, &pb.GroupCreate{})
	case feed.KindGroupLeave:
		var m pb.GroupLeave
		err := proto.Unmarshal(content, &m)
		a.Kind = roster.Leave
		return errors.Join(err, parseCuts(a, m.Cuts))
	case feed.KindGroupDissolve:
		a.Kind = roster.Dissolve
		return proto.Unmarshal(content, &pb.GroupDissolve{})
	case feed.KindGroupAdmit:
		return parseAdmit(a, e, content)
	case feed.KindGroupRemove:
		return parseRemove(a, content)
	case feed.KindGroupRole:
		return parseRole(a, content)
	case feed.KindGroupTransfer:
		return parseTransfer(a, e, content)
	case feed.KindGroupSet:
		var m pb.GroupSet
		err := proto.Unmarshal(content, &m)
		a.Kind, a.Key, a.Value = roster.Set, m.Key, m.Value
		return err
	case feed.KindGroupNickname:
		var m pb.GroupNickname
		err := proto.Unmarshal(content, &m)
		a.Kind, a.Value = roster.Nickname, m.Nickname
		if err == nil && len(a.Value) > MaxNickname {
			err = errors.New("long nickname")
		}
		return err
	case feed.KindGroupEpoch:
		var m pb.GroupEpoch
		err := proto.Unmarshal(content, &m)
		a.Kind, a.Generation = roster.NewEpoch, m.Generation
		return errors.Join(err, fixed(a.KeyHash[:], m.KeyHash))
	case feed.KindGroupRevoke:
		return parseRevoke(a, content)
	}
	return errors.New("unknown kind")
}

// fixed copies a field of exactly one length.
func fixed(to, from []byte) error {
	if len(to) != len(from) {
		return errors.New("field of wrong length")
	}
	copy(to, from)
	return nil
}

// consentSlack allows for wrong clocks.
const consentSlack = 24 * time.Hour

func parseAdmit(a *roster.Act, e *feed.Entry, content []byte) error {
	var m pb.GroupAdmit
	if err := proto.Unmarshal(content, &m); err != nil {
		return err
	}
	c, err := identity.ParseConsent(m.Consent)
	if err != nil {
		return err
	}
	if c.Group != identity.GroupID(e.Conversation) {
		return errors.New("consent to another group")
	}
	// A consent that was never used is good for its time only. The author's own word for when it was has to do: whoever lies
	// about it lies for all to see.
	if at := e.Time(); at.Before(c.Time.Add(-consentSlack)) || at.After(c.Expires.Add(consentSlack)) {
		return errors.New("consent out of its time")
	}
	a.Kind, a.Account, a.Applied, a.Consent = roster.Admit, c.Account, c.Applied, sha256.Sum256(m.Consent)
	if len(m.From) == 0 {
		return nil
	}
	return fixed(a.From[:], m.From)
}

func parseRemove(a *roster.Act, content []byte) error {
	var m pb.GroupRemove
	if err := proto.Unmarshal(content, &m); err != nil {
		return err
	}
	a.Kind = roster.Remove
	return errors.Join(fixed(a.Account[:], m.Account), parseCuts(a, m.Cuts))
}

func parseRevoke(a *roster.Act, content []byte) error {
	var m pb.GroupRevoke
	if err := proto.Unmarshal(content, &m); err != nil {
		return err
	}
	a.Kind = roster.Revoke
	return errors.Join(fixed(a.Revoked[:], m.Device), parseCuts(a, m.Cuts))
}

func parseRole(a *roster.Act, content []byte) error {
	var m pb.GroupRole
	if err := proto.Unmarshal(content, &m); err != nil {
		return err
	}
	a.Kind = roster.SetRole
	switch m.Role {
	case pb.GroupRole_ROLE_MEMBER:
		a.Role = roster.Member
	case pb.GroupRole_ROLE_ADMIN:
		a.Role = roster.Admin
	default:
		return errors.New("unknown role")
	}
	return fixed(a.Account[:], m.Account)
}

func parseTransfer(a *roster.Act, e *feed.Entry, content []byte) error {
	var m pb.GroupTransfer
	if err := proto.Unmarshal(content, &m); err != nil {
		return err
	}
	p, err := identity.ParseTransferProof(m.Proof)
	if err != nil {
		return err
	}
	a.Kind, a.Account = roster.Transfer, p.To
	if p.Group != identity.GroupID(e.Conversation) || p.From != e.Account || !slices.Equal(m.Account, p.To[:]) {
		return errors.New("proof of another transfer")
	}
	return nil
}

func parseCuts(a *roster.Act, cuts []*pb.GroupCut) error {
	if len(cuts) > roster.MaxCuts {
		return errors.New("too many cuts")
	}
	for _, m := range cuts {
		c := roster.Cut{Feed: m.Feed, Seq: m.Seq}
		if err := errors.Join(fixed(c.Device[:], m.Device), fixed(c.Hash[:], m.Hash)); err != nil {
			return err
		}
		if !feed.Number(m.Feed).Valid() || m.Seq == 0 || m.Seq > feed.MaxSeq {
			return errors.New("bad cut")
		}
		a.Cuts = append(a.Cuts, c)
	}
	return nil
}

// encodeAct makes the content of the entry of an act; proof is the consent of an Admit or the proof of a Transfer.
func encodeAct(a roster.Act, proof []byte) (feed.Kind, []byte, error) {
	var m proto.Message
	var kind feed.Kind
	switch a.Kind {
	case roster.Create:
		kind, m = feed.KindGroupCreate, &pb.GroupCreate{}
	case roster.Leave:
		kind, m = feed.KindGroupLeave, &pb.GroupLeave{Cuts: packCuts(a.Cuts)}
	case roster.Dissolve:
		kind, m = feed.KindGroupDissolve, &pb.GroupDissolve{}
	case roster.Admit:
		x := &pb.GroupAdmit{Consent: proof}
		if !a.From.IsZero() {
			x.From = a.From[:]
		}
		kind, m = feed.KindGroupAdmit, x
	case roster.Remove:
		kind, m = feed.KindGroupRemove, &pb.GroupRemove{Account: a.Account[:], Cuts: packCuts(a.Cuts)}
	case roster.Revoke:
		kind, m = feed.KindGroupRevoke, &pb.GroupRevoke{Device: a.Revoked[:], Cuts: packCuts(a.Cuts)}
	case roster.SetRole:
		role := pb.GroupRole_ROLE_MEMBER
		if a.Role == roster.Admin {
			role = pb.GroupRole_ROLE_ADMIN
		}
		kind, m = feed.KindGroupRole, &pb.GroupRole{Account: a.Account[:], Role: role}
	case roster.Transfer:
		kind, m = feed.KindGroupTransfer, &pb.GroupTransfer{Account: a.Account[:], Proof: proof}
	case roster.Set:
		kind, m = feed.KindGroupSet, &pb.GroupSet{Key: a.Key, Value: a.Value}
	case roster.Nickname:
		kind, m = feed.KindGroupNickname, &pb.GroupNickname{Nickname: a.Value}
	case roster.NewEpoch:
		kind, m = feed.KindGroupEpoch, &pb.GroupEpoch{Generation: a.Generation, KeyHash: a.KeyHash[:]}
	default:
		return 0, nil, fmt.Errorf("writing act: kind %d: %w", a.Kind, ErrInvalid)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return 0, nil, fmt.Errorf("writing act: %w", err)
	}
	return kind, b, nil
}

func packCuts(cuts []roster.Cut) []*pb.GroupCut {
	var out []*pb.GroupCut
	for _, c := range cuts {
		out = append(out, &pb.GroupCut{Device: c.Device[:], Feed: c.Feed, Seq: c.Seq, Hash: c.Hash[:]})
	}
	return out
}

// place is where the entry of an act is found, and when its author says it was.
type place struct {
	device  identity.DeviceID
	account identity.AccountID
	seq     uint64
	clock   uint64
	timeMS  int64
}

// The acts of a group are kept a second time, without their proofs, so that a roster is loaded without checking thousands
// of signatures again. The form is our own and never leaves this disk.

const actVersion = 1

// appendAct encodes an act for the own disk; its ID and clock are in the key.
func appendAct(b []byte, a *roster.Act, p place) []byte {
	b = append(b, actVersion, byte(a.Kind), byte(a.Role), bit(a.Applied), byte(len(a.Parents)), byte(len(a.Cuts)))
	b = append(append(b, a.Author[:]...), a.Device[:]...)
	b = binary.AppendUvarint(b, p.seq)
	b = binary.AppendUvarint(b, uint64(p.timeMS))
	for _, q := range a.Parents {
		b = append(b, q[:]...)
	}
	for _, c := range a.Cuts {
		b = append(append(b, c.Device[:]...), c.Hash[:]...)
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(c.Feed)), c.Seq)
	}
	b = binary.AppendUvarint(b, a.Generation)
	b = binary.AppendUvarint(b, uint64(len(a.Key)))
	b = append(b, a.Key...)
	b = binary.AppendUvarint(b, uint64(len(a.Value)))
	b = append(b, a.Value...)
	for _, f := range [][]byte{a.Account[:], a.Consent[:], a.Revoked[:], a.KeyHash[:], a.From[:]} {
		if z := [32]byte{}; string(f) == string(z[:]) {
			b = append(b, 0)
			continue
		}
		b = append(append(b, 1), f...)
	}
	return b
}

func bit(on bool) byte {
	if on {
		return 1
	}
	return 0
}

// errRow: a row of the own disk does not read. The database checks what it keeps, so this is a bug or a newer version.
var errRow = errors.New("row does not read")

// cursor reads a row.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n < 0 || len(c.b) < n {
		c.bad = true
		return make([]byte, max(0, min(n, 64)))
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) text() string {
	n := c.uvarint()
	if n > roster.MaxValue {
		c.bad = true
		return ""
	}
	return string(c.take(int(n)))
}

// readAct decodes what appendAct made.
func readAct(b []byte) (a roster.Act, p place, err error) {
	c := &cursor{b: b}
	h := c.take(6)
	a.Kind, a.Role, a.Applied = roster.Kind(h[1]), roster.Role(h[2]), h[3] == 1
	a.Author, a.Device = identity.AccountID(c.take(32)), identity.DeviceID(c.take(32))
	p.seq, p.timeMS = c.uvarint(), int64(c.uvarint())
	p.device, p.account = a.Device, a.Author
	if h[4] > 0 {
		a.Parents = make([]roster.ID, h[4])
		for i := range a.Parents {
			a.Parents[i] = roster.ID(c.take(32))
		}
	}
	for range h[5] {
		cut := roster.Cut{Device: identity.DeviceID(c.take(32)), Hash: [32]byte(c.take(32))}
		cut.Feed, cut.Seq = uint32(c.uvarint()), c.uvarint()
		a.Cuts = append(a.Cuts, cut)
	}
	a.Generation, a.Key, a.Value = c.uvarint(), c.text(), c.text()
	for _, f := range [][]byte{a.Account[:], a.Consent[:], a.Revoked[:], a.KeyHash[:], a.From[:]} {
		if c.take(1)[0] == 1 {
			copy(f, c.take(32))
		}
	}
	if c.bad || len(c.b) > 0 || h[0] != actVersion {
		return roster.Act{}, place{}, fmt.Errorf("reading an act: %w", errRow)
	}
	return a, p, nil
}
