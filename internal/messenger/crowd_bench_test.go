package messenger

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

// hall is a large group as its owner's profile holds it: real rosters and entries on disk, and no network.
type hall struct {
	b     testing.TB
	dir   string
	owner *guest
	book  *book
	conv  groups.ID
	clock uint64

	db  *storage.DB
	rep *replica.Replica
	m   *Messenger
	g   *groups.Groups
}

// guest writes the feeds of a member.
type guest struct {
	key    identity.DeviceKey
	cert   identity.Certificate
	author feed.Author
	tips   map[feed.Number]feed.Tip
}

func (h *hall) guest(name string) *guest {
	h.b.Helper()
	acct := identity.AccountKeyFromSeed(sha256.Sum256([]byte("hall account " + name)))
	p := &guest{key: identity.DeviceKeyFromSeed(sha256.Sum256([]byte("hall device " + name))), tips: map[feed.Number]feed.Tip{}}
	p.cert = identity.NewCertificate(acct, p.key.ID(), time.Now())
	p.author = feed.NewAuthor(acct.ID(), p.key.ID(), p.cert)
	rec, err := identity.NewAccountRecord(acct, identity.RecordConfig{Now: time.Now(), Devices: []identity.Certificate{p.cert}})
	require.NoError(h.b, err)
	h.book.enter(rec, p.key.ID())
	return p
}

func (h *hall) open() {
	h.b.Helper()
	db, err := storage.Open(storage.Config{Dir: h.dir, Key: make([]byte, 32)})
	require.NoError(h.b, err)
	p := h.owner
	m, err := New(Config{DB: db, Account: p.cert.Account, Device: p.key.ID(), Username: "owner"})
	require.NoError(h.b, err)
	g, err := groups.New(groups.Config{
		DB: db, Account: p.cert.Account, Key: p.key, Certificate: p.cert, Records: h.book.Record, News: m.GroupNews, Fold: text.FoldName,
	})
	require.NoError(h.b, err)
	rep, err := replica.New(replica.Config{
		DB: db, Account: p.cert.Account, Key: p.key, Certificate: p.cert, Records: h.book, Members: m, Gate: m, Hooks: m, Keys: g, OnStored: g.OnStored,
	})
	require.NoError(h.b, err)
	m.Bind(Parts{Feeds: rep, People: h.book, Groups: g})
	g.Bind(groups.Parts{Feeds: groupFeeds{rep, m}, Say: m.Say, Note: m.NoteLink, Devices: h.book.Devices})
	h.db, h.rep, h.m, h.g = db, rep, m, g
}

// admit lets a guest in who applied.
func (h *hall) admit(p *guest) {
	h.b.Helper()
	now := time.Now()
	c, err := identity.NewConsent(p.key, identity.Consent{
		Group: identity.GroupID(h.conv), Certificate: p.cert, Applied: true, Time: now, Expires: now.Add(time.Hour),
	})
	require.NoError(h.b, err)
	content, err := proto.Marshal(&pb.GroupApplication{Group: h.conv[:], Consent: c.Raw()})
	require.NoError(h.b, err)
	require.NoError(h.b, h.db.Update(context.Background(), func(tx *storage.Tx) error {
		return h.g.Said(tx, p.cert.Account, h.owner.cert.Account, feed.KindGroupApplication, content, now)
	}))
	_, err = h.g.Decide(context.Background(), h.conv, p.cert.Account, true, "")
	require.NoError(h.b, err)
}

// write brings what a guest writes next; done hears of it.
func (h *hall) write(p *guest, n feed.Number, k feed.Kind, content proto.Message, g feed.Group, done func(error)) {
	h.b.Helper()
	raw, err := proto.Marshal(content)
	require.NoError(h.b, err)
	h.clock++
	e, err := p.author.NextInGroup(p.tips[n], h.conv, n, k, h.clock, time.Now().UnixMilli(), raw, g)
	require.NoError(h.b, err)
	p.tips[n] = e.Tip()
	run, err := feed.Assemble([]feed.Entry{e}, feed.SignRun(p.key, e))
	require.NoError(h.b, err)
	h.rep.SubmitRun(replica.Peer{Account: p.cert.Account, Device: p.key.ID()}, run, true, done)
}

// newHall makes a group in which everybody has a name and, in no order, said a few things. It is closed and opened again.
func newHall(b testing.TB, members, each int) *hall {
	b.Helper()
	h := &hall{b: b, dir: b.TempDir(), book: &book{records: make(map[identity.AccountID]identity.AccountRecord), devices: make(map[identity.AccountID][]identity.DeviceID)}}
	h.owner = h.guest("owner")
	h.open()
	info, err := h.g.Create(context.Background(), groups.Options{Name: "Hall", Join: "apply", History: "all"})
	require.NoError(b, err)
	h.conv = info.ID
	var guests []*guest
	for i := range members - 1 {
		p := h.guest(fmt.Sprint(i))
		h.admit(p)
		guests = append(guests, p)
	}
	first, err := h.m.Send(context.Background(), SendInput{Who: "Hall", Text: "welcome"})
	require.NoError(b, err)
	require.Equal(b, members-1, first.Members)
	var control feed.Group
	chat := feed.Group{}
	require.NoError(b, h.db.View(func(tx *storage.Tx) error {
		head, _, err := h.rep.Head(tx, h.rep.OwnFeed(h.conv, feed.Control))
		if err != nil {
			return err
		}
		control.Parents = []feed.EntryID{head.Hash}
		e, err := h.rep.Entry(tx, h.rep.OwnFeed(h.conv, feed.Chat), 1)
		chat.Epoch, h.clock = e.Epoch, e.Clock
		return err
	}))
	said := make(chan error, len(guests)*(each+1))
	for i, p := range guests {
		h.write(p, feed.Control, feed.KindGroupNickname, &pb.GroupNickname{Nickname: fmt.Sprint("guest ", i)}, control, func(err error) { said <- err })
	}
	order := make([]int, 0, len(guests)*each)
	for range each {
		for i := range guests {
			order = append(order, i)
		}
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for n, i := range order {
		words := &pb.Text{Text: fmt.Sprint("message ", n, " of some length, as people write in groups")}
		h.write(guests[i], feed.Chat, feed.KindText, words, chat, func(err error) { said <- err })
	}
	for range cap(said) {
		require.NoError(b, <-said)
	}
	require.NoError(b, h.db.Close())
	h.open()
	b.Cleanup(func() { require.NoError(b, h.db.Close()) })
	return h
}

// BenchmarkCrowdPage reads the newest page of a group of 500 of whom everybody spoke: a thousand feeds. Everything is real but
// the network, and on disk.
func BenchmarkCrowdPage(b *testing.B) {
	ctx := context.Background()
	h := newHall(b, 500, 10)
	b.Run("newest", func(b *testing.B) {
		for b.Loop() {
			got, err := h.m.History(ctx, HistoryQuery{Who: "Hall"})
			require.NoError(b, err)
			require.Len(b, got.Messages, 50)
		}
	})
	b.Run("before", func(b *testing.B) {
		var before string
		for b.Loop() {
			got, err := h.m.History(ctx, HistoryQuery{Who: "Hall", Before: before})
			require.NoError(b, err)
			require.Len(b, got.Messages, 50)
			if before = got.Messages[0].ID.String(); got.Messages[0].Clock < h.clock-2000 {
				before = ""
			}
		}
	})
}
