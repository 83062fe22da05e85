package messenger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/groups"
	"hima/identity"
	"hima/internal/wire/pb"
)

func TestSnapshotNamesGroups(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	foe := newPerson(t, "mallory")
	a.add(foe)
	_, err := a.m.Block(ctx, foe.id())
	require.NoError(t, err)
	x, y, z := newPerson(t, "xaver").account, newPerson(t, "yves").account, newPerson(t, "zoe").account
	a.groups.remembered = []groups.Remembered{
		{Group: groups.ID{9}, Name: "Hikers", Members: []identity.AccountID{foe.account, x, y, b.account, z}},
		{Group: groups.ID{8}, Name: "Tea\u202e\n", Members: []identity.AccountID{x, foe.account}},
	}
	raw := a.export()

	r := restore(t, a)
	got, err := r.m.ImportSnapshot(ctx, raw)
	require.NoError(t, err)
	require.Equal(t, 2, got.Groups)
	require.Equal(t, []groups.Remembered{
		{Group: groups.ID{8}, Name: "Tea", Members: []identity.AccountID{x, foe.account}},
		{Group: groups.ID{9}, Name: "Hikers", Members: []identity.AccountID{b.account, x, y, z}},
	}, r.groups.restored)

	// What does not read is left out, and an older version that names no groups reads as ever.
	var s pb.Snapshot
	require.NoError(t, proto.Unmarshal(raw, &s))
	s.Groups = append(s.Groups[:1:1], &pb.SnapshotGroup{}, &pb.SnapshotGroup{Group: []byte("short"), Members: [][]byte{x[:]}},
		&pb.SnapshotGroup{Group: make([]byte, 33)}, nil)
	s.Groups[0].Members = [][]byte{nil, []byte("short"), a.account.Bytes(), y[:]}
	odd, err := proto.Marshal(&s)
	require.NoError(t, err)
	r = restore(t, a)
	got, err = r.m.ImportSnapshot(ctx, odd)
	require.NoError(t, err)
	require.Equal(t, []groups.Remembered{{Group: groups.ID{8}, Name: "Tea", Members: []identity.AccountID{y}}}, r.groups.restored)
	require.Equal(t, Imported{Contacts: 2, Groups: 1}, got)
	s.Groups = nil
	old, err := proto.Marshal(&s)
	require.NoError(t, err)
	r = restore(t, a)
	got, err = r.m.ImportSnapshot(ctx, old)
	require.NoError(t, err)
	require.Equal(t, Imported{Contacts: 2}, got)
	require.Empty(t, r.groups.restored)
}

// Neither people nor groups push all of the others out, and those where something happened last come first.
func TestGroupsFitIntoASnapshot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := strings.Repeat("n", rapid.IntRange(0, 100).Draw(t, "name"))
		var joined []rankedGroup
		for i := range rapid.IntRange(0, 700).Draw(t, "groups") {
			g := &pb.SnapshotGroup{Group: binary.BigEndian.AppendUint32(make([]byte, 28), uint32(i)), Name: name}
			for range 1 + i%snapshotMembers {
				g.Members = append(g.Members, make([]byte, 32))
			}
			joined = append(joined, rankedGroup{g, int64(i * 7919 % 701)})
		}
		var people []rankedContact
		for i := range rapid.IntRange(0, 1500).Draw(t, "people") {
			a := identity.AccountID(binary.BigEndian.AppendUint32(make([]byte, 28), uint32(i)))
			people = append(people, rankedContact{&pb.SnapshotContact{State: &pb.ContactState{Account: a[:], AddedMs: 1}}, a, int64(i)})
		}
		all, everybody := slices.Clone(joined), len(people)
		s := &pb.Snapshot{Version: 1, Account: make([]byte, 32), TimeMs: 1_700_000_000_000}
		fillSnapshot(s, people, joined)
		if size := proto.Size(s); size > maxSnapshot {
			t.Fatalf("%d bytes", size)
		}
		if whole := len(s.GetGroups()) == len(all) && len(s.GetContacts()) == everybody; s.GetCut() == whole {
			t.Fatalf("%d of %d groups, %d of %d people, cut %t", len(s.GetGroups()), len(all), len(s.GetContacts()), everybody, s.GetCut())
		}
		if least := 20; len(s.GetGroups()) < min(least, len(all)) || len(s.GetContacts()) < min(least, everybody) {
			t.Fatalf("only %d groups and %d people", len(s.GetGroups()), len(s.GetContacts()))
		}
		oldest := int64(1 << 62)
		in := map[uint32]bool{}
		for _, g := range s.GetGroups() {
			in[binary.BigEndian.Uint32(g.GetGroup()[28:])] = true
		}
		for i, g := range all {
			if in[uint32(i)] {
				oldest = min(oldest, g.activity)
			}
		}
		for i, g := range all {
			if !in[uint32(i)] && g.activity > oldest {
				t.Fatalf("group %d is left out, one with less activity is not", i)
			}
		}
		if !slices.IsSortedFunc(s.GetGroups(), func(a, b *pb.SnapshotGroup) int { return slices.Compare(a.GetGroup(), b.GetGroup()) }) {
			t.Fatalf("the order follows the activity")
		}
	})
}

// snapshotVectors is docs/spec/vectors/snapshot.json.
type snapshotVectors struct {
	Comment string `json:"comment"`
	Plain   string `json:"plain"`    // of a version with groups and links to them
	Older   string `json:"older"`    // the same by a version without
	Account string `json:"account"`  // whose it is
	TimeMS  int64  `json:"time_ms"`  // when it was made
	Contact string `json:"contact"`  // a contact, named like the group's first member
	Group   string `json:"group"`    // hash of the genesis
	Name    string `json:"name"`     // of the group
	Second  string `json:"second"`   // the other member
	Remark  string `json:"remark"`   // of the contact
	AddedMS int64  `json:"added_ms"` // when they became one
	Token   string `json:"token"`    // of an invite
	Link    string `json:"link"`     // token of a link to the group, made and over at these times, for so many uses
	MadeMS  int64  `json:"made_ms"`
	OverMS  int64  `json:"over_ms"`
	Uses    uint32 `json:"uses"`
}

func TestSnapshotVectors(t *testing.T) {
	account := func(name string) identity.AccountID {
		return identity.AccountKeyFromSeed(sha256.Sum256([]byte(name))).ID()
	}
	ann, ben, cid, group := account("ann"), account("ben"), account("cid"), sha256.Sum256([]byte("group"))
	token, link := bytes.Repeat([]byte{1}, 16), bytes.Repeat([]byte{2}, 16)
	v := snapshotVectors{
		Comment: "Plain snapshots, see docs/spec/snapshot.md. Account keys follow from SHA-256 of the names ann, ben and cid as seeds.",
		Account: ann.String(), TimeMS: 1_800_000_000_000, Contact: ben.String(), Group: hex.EncodeToString(group[:]), Name: "Hikers 徒步",
		Second: cid.String(), Remark: "Benny", AddedMS: 1_700_000_000_000,
		Token: hex.EncodeToString(token), Link: hex.EncodeToString(link), MadeMS: 1_750_000_000_000, OverMS: 1_900_000_000_000, Uses: 3,
	}
	s := &pb.Snapshot{Version: snapshotVersion, Account: ann.Bytes(), TimeMs: v.TimeMS, Contacts: []*pb.SnapshotContact{{
		Username: "ben", State: &pb.ContactState{Account: ben.Bytes(), State: pb.ContactState_STATE_CONTACT, Remark: v.Remark, AddedMs: v.AddedMS},
	}}}
	older, err := encodeSnapshot(s)
	require.NoError(t, err)
	s.Groups = []*pb.SnapshotGroup{{Group: group[:], Name: v.Name, Members: [][]byte{ben.Bytes(), cid.Bytes()}}}
	s.Invites = []*pb.InviteState{{Token: token, CreatedMs: v.MadeMS}}
	s.Links = []*pb.InviteState{{Token: link, Group: group[:], CreatedMs: v.MadeMS, ExpiresMs: v.OverMS, Uses: v.Uses}}
	plain, err := encodeSnapshot(s)
	require.NoError(t, err)
	v.Plain, v.Older = hex.EncodeToString(plain), hex.EncodeToString(older)
	file := filepath.Join("..", "..", "docs", "spec", "vectors", "snapshot.json")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		b, err := json.MarshalIndent(v, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, append(b, '\n'), 0o644))
	}
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	var written snapshotVectors
	require.NoError(t, json.Unmarshal(b, &written))
	require.Equal(t, written, v, "the bytes of a snapshot changed; UPDATE_GOLDEN=1 writes the file anew")
}
