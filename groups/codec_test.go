package groups

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
)

// actVectors is docs/spec/vectors/acts.json: contents of acts, in a group and by an author that stand above them.
type actVectors struct {
	Comment  string      `json:"comment"`
	Group    string      `json:"group"`
	Author   string      `json:"author"`
	TimeMS   int64       `json:"time_ms"` // of the entry
	Good     []actVector `json:"good"`
	Rejected []actVector `json:"rejected"`
}

type actVector struct {
	What    string `json:"what"`
	Kind    uint32 `json:"kind"`
	Content string `json:"content"`
}

func actVectorsFile() string { return filepath.Join("..", "docs", "spec", "vectors", "acts.json") }

// actMaker makes acts that follow from names alone.
type actMaker struct {
	t      testing.TB
	group  identity.GroupID
	at     time.Time
	device map[string]identity.DeviceKey
	cert   map[string]identity.Certificate
}

func newActMaker(t testing.TB, names ...string) actMaker {
	m := actMaker{
		t: t, group: testHash("group"), at: time.UnixMilli(1_800_000_000_000),
		device: map[string]identity.DeviceKey{}, cert: map[string]identity.Certificate{},
	}
	for _, name := range names {
		m.device[name] = identity.DeviceKeyFromSeed(testHash("device of " + name))
		m.cert[name] = identity.NewCertificate(identity.AccountKeyFromSeed(testHash("account of "+name)), m.device[name].ID(), m.at)
	}
	return m
}

func (m actMaker) consent(name string, group identity.GroupID, applied bool, message string) []byte {
	c, err := identity.NewConsent(m.device[name], identity.Consent{
		Group: group, Account: m.cert[name].Account, Certificate: m.cert[name], Applied: applied, Message: message,
		Time: m.at, Expires: m.at.Add(24 * time.Hour),
	})
	require.NoError(m.t, err)
	return c.Raw()
}

func (m actMaker) transfer(from, to string) []byte {
	p, err := identity.NewTransferProof(m.device[from], identity.TransferProof{
		Group: m.group, To: m.cert[to].Account, Certificate: m.cert[from], Time: m.at,
	})
	require.NoError(m.t, err)
	return p.Raw()
}

func (m actMaker) vectors() actVectors {
	ann, ben := m.cert["ann"].Account, m.cert["ben"].Account
	cut := roster.Cut{Device: m.device["ben"].ID(), Feed: uint32(feed.Chat), Seq: 7, Hash: testHash("entry 7")}
	own := cut
	own.Device = m.device["ann"].ID()
	out := actVectors{
		Comment: "Contents of acts, see docs/spec/groups.md. Keys follow from SHA-256 of names as seeds.",
		Group:   hex.EncodeToString(m.group[:]), Author: ann.String(), TimeMS: m.at.UnixMilli(),
	}
	good := func(what string, a roster.Act, proof []byte) {
		kind, content, err := encodeAct(a, proof)
		require.NoError(m.t, err)
		out.Good = append(out.Good, actVector{what, uint32(kind), hex.EncodeToString(content)})
	}
	bad := func(what string, a roster.Act, proof []byte) {
		kind, content, err := encodeAct(a, proof)
		require.NoError(m.t, err)
		out.Rejected = append(out.Rejected, actVector{what, uint32(kind), hex.EncodeToString(content)})
	}
	good("the genesis", roster.Act{Kind: roster.Create}, nil)
	good("ben is let in, invited", roster.Act{Kind: roster.Admit}, m.consent("ben", m.group, false, ""))
	good("ben is let in, who applied, from an epoch on", roster.Act{Kind: roster.Admit, From: testHash("epoch")}, m.consent("ben", m.group, true, "let me in"))
	good("ann goes, who said nothing", roster.Act{Kind: roster.Leave}, nil)
	good("ann goes, seven messages count", roster.Act{Kind: roster.Leave, Cuts: []roster.Cut{own}}, nil)
	good("ben is removed, nothing of him counts", roster.Act{Kind: roster.Remove, Account: ben}, nil)
	good("ben is removed, seven messages count", roster.Act{Kind: roster.Remove, Account: ben, Cuts: []roster.Cut{cut}}, nil)
	good("ben becomes admin", roster.Act{Kind: roster.SetRole, Account: ben, Role: roster.Admin}, nil)
	good("ben becomes member", roster.Act{Kind: roster.SetRole, Account: ben, Role: roster.Member}, nil)
	good("ann hands over to ben", roster.Act{Kind: roster.Transfer, Account: ben}, m.transfer("ann", "ben"))
	good("the name", roster.Act{Kind: roster.Set, Key: roster.SettingName, Value: "Hikers 徒步"}, nil)
	good("ann's own name", roster.Act{Kind: roster.Nickname, Value: "Ann"}, nil)
	good("the first epoch", roster.Act{Kind: roster.NewEpoch, Generation: 1, KeyHash: testKey(m.t, "key").Hash()}, nil)
	good("another device of ann counts no more", roster.Act{Kind: roster.Revoke, Revoked: testHash("lost"), Cuts: []roster.Cut{cut}}, nil)
	good("the end", roster.Act{Kind: roster.Dissolve}, nil)

	bad("consent to another group", roster.Act{Kind: roster.Admit}, m.consent("ben", testHash("other"), false, ""))
	forged := m.consent("ben", m.group, false, "")
	forged[len(forged)-1] ^= 1
	bad("forged consent", roster.Act{Kind: roster.Admit}, forged)
	bad("no consent", roster.Act{Kind: roster.Admit}, nil)
	bad("somebody else's proof", roster.Act{Kind: roster.Transfer, Account: ann}, m.transfer("ben", "ann"))
	bad("proof of a transfer to somebody else", roster.Act{Kind: roster.Transfer, Account: ann}, m.transfer("ann", "ben"))
	far := cut
	far.Seq = 0
	bad("a cut at nothing", roster.Act{Kind: roster.Remove, Account: ben, Cuts: []roster.Cut{far}}, nil)
	far.Seq, far.Feed = 1, 3
	bad("a cut of a feed that is none", roster.Act{Kind: roster.Remove, Account: ben, Cuts: []roster.Cut{far}}, nil)
	bad("a cut of nothing, by ann who goes", roster.Act{Kind: roster.Leave, Cuts: []roster.Cut{far}}, nil)
	bad("too many cuts", roster.Act{Kind: roster.Remove, Account: ben, Cuts: make([]roster.Cut, roster.MaxCuts+1)}, nil)
	long := make([]byte, MaxNickname+1)
	bad("a long nickname", roster.Act{Kind: roster.Nickname, Value: string(long)}, nil)
	return out
}

// entryOf is the entry around a content, as far as reading an act looks at it.
func (m actMaker) entryOf(v actVector) (feed.Entry, []byte) {
	content, err := hex.DecodeString(v.Content)
	require.NoError(m.t, err)
	e := feed.Entry{Header: feed.Header{
		Conversation: feed.ConversationID(m.group), Number: feed.Control, Kind: feed.Kind(v.Kind),
		Account: m.cert["ann"].Account, Device: m.device["ann"].ID(), TimeMS: m.at.UnixMilli(),
	}}
	if e.Kind == feed.KindGroupCreate {
		e.Nonce = make([]byte, 32)
	}
	return e, content
}

func TestActVectors(t *testing.T) {
	m := newActMaker(t, "ann", "ben")
	made := m.vectors()
	if os.Getenv("UPDATE_GOLDEN") != "" {
		b, err := json.MarshalIndent(made, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(actVectorsFile(), append(b, '\n'), 0o644))
	}
	b, err := os.ReadFile(actVectorsFile())
	require.NoError(t, err)
	var written actVectors
	require.NoError(t, json.Unmarshal(b, &written))
	require.Equal(t, written, made, "the bytes of an act changed; UPDATE_GOLDEN=1 writes the file anew")
	for _, v := range written.Good {
		e, content := m.entryOf(v)
		var a roster.Act
		require.NoError(t, parseContent(&a, &e, content), v.What)
		var proof []byte
		switch v.Kind {
		case uint32(feed.KindGroupAdmit):
			proof = m.consent("ben", m.group, a.Applied, map[bool]string{true: "let me in"}[a.Applied])
		case uint32(feed.KindGroupTransfer):
			proof = m.transfer("ann", "ben")
		}
		kind, again, err := encodeAct(a, proof)
		require.NoError(t, err, v.What)
		require.Equal(t, v.Kind, uint32(kind), v.What)
		require.Equal(t, v.Content, hex.EncodeToString(again), v.What)
	}
	for _, v := range written.Rejected {
		e, content := m.entryOf(v)
		var a roster.Act
		require.Error(t, parseContent(&a, &e, content), v.What)
	}
}

// What reads as an act is within its bounds, goes onto the own disk and comes back the same.
func FuzzActContent(f *testing.F) {
	m := newActMaker(f, "ann", "ben")
	all := m.vectors()
	for _, v := range append(all.Good, all.Rejected...) {
		content, err := hex.DecodeString(v.Content)
		require.NoError(f, err)
		f.Add(v.Kind, content)
	}
	f.Fuzz(func(t *testing.T, kind uint32, content []byte) {
		m := m
		m.t = t
		e, _ := m.entryOf(actVector{Kind: kind})
		a := roster.Act{ID: testHash("id"), Author: e.Account, Device: e.Device}
		if parseContent(&a, &e, content) != nil || len(a.Value) > roster.MaxValue || len(a.Key) > roster.MaxValue {
			return
		}
		require.LessOrEqual(t, len(a.Cuts), roster.MaxCuts)
		p := place{device: a.Device, account: a.Author, seq: 3, timeMS: e.TimeMS}
		b, q, err := readAct(appendAct(nil, &a, p))
		require.NoError(t, err)
		b.ID = a.ID
		require.Equal(t, a, b)
		require.Equal(t, p, q)
	})
}
