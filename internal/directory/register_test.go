package directory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire/pb"
	"hima/storage"
)

// aClaim makes a claim of an account, with its work.
func (w *town) aClaim(n int, name string) (identity.NameClaim, *pb.NameRequest) {
	w.t.Helper()
	c, err := identity.NewNameClaim(accountKey(n), w.link.ID(), name, w.now())
	require.NoError(w.t, err)
	return c, registerRequest(c)
}

func registerRequest(c identity.NameClaim) *pb.NameRequest {
	return &pb.NameRequest{Of: &pb.NameRequest_Register{Register: &pb.NameRegister{
		Claim: c.Raw(), Work: identity.ClaimWork(context.Background(), c, testBits),
	}}}
}

func returnRequest(stamps ...identity.NameStamp) *pb.NameRequest {
	q := &pb.NameReturn{}
	for _, s := range stamps {
		q.Stamps = append(q.Stamps, s.Raw())
	}
	return &pb.NameRequest{Of: &pb.NameRequest_Return{Return: q}}
}

func ask(t *testing.T, r *Register, q *pb.NameRequest) nameAnswer {
	t.Helper()
	a, err := checkNameAnswer(r.answer(t.Context(), q))
	require.NoError(t, err)
	return a
}

func TestRegisterKeepsWhatItStamped(t *testing.T) {
	w := newTown(t, 1, 1)
	dir := t.TempDir()
	db := openDB(t, dir)
	r := w.start(0, db, true)
	_, q := w.aClaim(1, "ann")
	a := ask(t, r, q)
	require.Equal(t, pb.NameAnswer_CODE_STAMPED, a.code)
	require.Equal(t, a, ask(t, r, q), "asked again it says the same")
	_, q2 := w.aClaim(2, "ann")
	b := ask(t, r, q2)
	require.Equal(t, pb.NameAnswer_CODE_TAKEN, b.code)
	require.Equal(t, a.stamp, b.stamp)
	require.NoError(t, db.Close())

	// After a restart it stands, whatever the operator says about freshness.
	for _, fresh := range []bool{true, false} {
		db = openDB(t, dir)
		r = w.start(0, db, fresh)
		require.Equal(t, 1, r.Stats().Names)
		require.False(t, r.Stats().Rebuilding)
		require.Equal(t, a.stamp, ask(t, r, lookupName("ann")).stamp)
		require.Equal(t, pb.NameAnswer_CODE_TAKEN, ask(t, r, q2).code)
		require.Equal(t, pb.NameAnswer_CODE_NOT_FOUND, ask(t, r, lookupName("bob")).code)
		require.NoError(t, db.Close())
	}
}

// What is not on disk was not stamped.
func TestRegisterStampsDurably(t *testing.T) {
	broken := errors.New("power cut")
	fail := false
	db, err := storage.Open(storage.Config{Dir: t.TempDir(), Key: make([]byte, 32), MinFree: 1, Fail: func(point string) error {
		if fail && point == "before-commit" {
			return broken
		}
		return nil
	}})
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	w := newTown(t, 1, 1)
	r := w.start(0, db, true)
	fail = true
	_, q := w.aClaim(1, "ann")
	a := ask(t, r, q)
	require.Equal(t, pb.NameAnswer_CODE_BUSY, a.code)
	require.True(t, a.stamp.IsZero())
	require.Zero(t, r.Stats().Names)
}

func TestEmptyRegisterIsSilentForADay(t *testing.T) {
	w := newTown(t, 1, 1)
	db := memDB(t)
	r := w.start(0, db, false)
	_, q := w.aClaim(1, "ann")
	a := ask(t, r, q)
	require.Equal(t, pb.NameAnswer_CODE_REBUILDING, a.code)
	require.True(t, a.rebuilding)
	require.True(t, ask(t, r, lookupName("ann")).rebuilding)
	// A restart neither shortens the silence nor begins it anew.
	w.clock.add(registerSilence - time.Minute)
	r = w.start(0, db, false)
	require.Equal(t, pb.NameAnswer_CODE_REBUILDING, ask(t, r, q).code)
	w.clock.add(2 * time.Minute)
	require.Equal(t, pb.NameAnswer_CODE_STAMPED, ask(t, r, q).code)
	require.False(t, r.Stats().Rebuilding)

	// The operator can end it.
	db = memDB(t)
	w.start(0, db, false)
	r = w.start(0, db, true)
	require.Equal(t, pb.NameAnswer_CODE_STAMPED, ask(t, r, q).code)
}

func TestRegisterIsRebuiltByWhatComesBack(t *testing.T) {
	w := newTown(t, 2, 1)
	r := w.start(0, memDB(t), true)
	var stamps []identity.NameStamp
	for i := range 5 {
		_, q := w.aClaim(1+i, fmt.Sprintf("name%d", i))
		stamps = append(stamps, ask(t, r, q).stamp)
	}
	sister, err := identity.NewNameStamp(bootKey(1), stamps[0].Claim, w.now())
	require.NoError(t, err)
	r = w.start(0, memDB(t), false)
	require.Equal(t, pb.NameAnswer_CODE_STAMPED, ask(t, r, returnRequest(stamps...)).code)
	require.Equal(t, 5, r.Stats().Names)
	require.EqualValues(t, 5, r.Stats().Returned)
	require.Equal(t, pb.NameAnswer_CODE_STAMPED, ask(t, r, returnRequest(append(stamps, sister)...)).code, "twice is once")
	require.Equal(t, 5, r.Stats().Names)
	// While it is silent it says who has what is known.
	_, q := w.aClaim(9, "name3")
	a := ask(t, r, q)
	require.Equal(t, pb.NameAnswer_CODE_TAKEN, a.code)
	require.Equal(t, stamps[3], a.stamp)
	_, q = w.aClaim(4, "name3")
	require.Equal(t, pb.NameAnswer_CODE_STAMPED, ask(t, r, q).code)

	// The earlier stamp wins, whoever made it and whatever came first.
	earlier, err := identity.NewNameClaim(accountKey(50), w.link.ID(), "name0", w.now())
	require.NoError(t, err)
	before, err := identity.NewNameStamp(bootKey(1), earlier, w.now().Add(-time.Hour))
	require.NoError(t, err)
	require.Equal(t, pb.NameAnswer_CODE_STAMPED, ask(t, r, returnRequest(before)).code)
	require.Equal(t, account(50), ask(t, r, lookupName("name0")).stamp.Claim.Account)
	a = ask(t, r, returnRequest(stamps[0]))
	require.Equal(t, pb.NameAnswer_CODE_TAKEN, a.code)
	require.Equal(t, before, a.stamp)
	require.Equal(t, 5, r.Stats().Names)
}

func TestRegisterRefuses(t *testing.T) {
	w := newTown(t, 1, 1)
	r := w.start(0, memDB(t), true)
	good, q := w.aClaim(1, "ann")
	bad := func(code pb.NameAnswer_Code, q *pb.NameRequest) {
		t.Helper()
		a := ask(t, r, q)
		require.Equal(t, code, a.code)
		require.True(t, a.stamp.IsZero())
	}
	bad(pb.NameAnswer_CODE_BAD, &pb.NameRequest{})
	bad(pb.NameAnswer_CODE_BAD, &pb.NameRequest{Of: &pb.NameRequest_Register{}})
	bad(pb.NameAnswer_CODE_BAD, &pb.NameRequest{Of: &pb.NameRequest_Return{}})
	bad(pb.NameAnswer_CODE_BAD, lookupName("Not Canonical"))
	bad(pb.NameAnswer_CODE_BAD, lookupName(""))

	noWork := proto.CloneOf(q)
	noWork.GetRegister().Work = nil
	bad(pb.NameAnswer_CODE_WORK, noWork)
	wrong := proto.CloneOf(q)
	wrong.GetRegister().Work = bytes.Repeat([]byte{0xfe}, 8)
	for identity.CheckClaimWork(good, wrong.GetRegister().Work, testBits) {
		wrong.GetRegister().Work[0]++
	}
	bad(pb.NameAnswer_CODE_WORK, wrong)

	forged := proto.CloneOf(q)
	forged.GetRegister().Claim[len(forged.GetRegister().Claim)-1] ^= 1
	bad(pb.NameAnswer_CODE_BAD, forged)
	for _, c := range []struct {
		network identity.NetworkID
		name    string
		at      time.Time
	}{
		{identity.NetworkID{1}, "ann", w.now()},
		{w.link.ID(), "Ann", w.now()},
		{w.link.ID(), "a b", w.now()},
		{w.link.ID(), "ann", w.now().Add(25 * time.Hour)},
	} {
		claim, err := identity.NewNameClaim(accountKey(1), c.network, c.name, c.at)
		require.NoError(t, err)
		bad(pb.NameAnswer_CODE_BAD, registerRequest(claim))
	}

	// Stamps of others, of the future, of another network, and forged ones do not come in.
	stamp := func(key int, c identity.NameClaim, at time.Time) identity.NameStamp {
		s, err := identity.NewNameStamp(bootKey(key), c, at)
		require.NoError(t, err)
		return s
	}
	elsewhere, err := identity.NewNameClaim(accountKey(1), identity.NetworkID{1}, "ann", w.now())
	require.NoError(t, err)
	for _, s := range []identity.NameStamp{
		stamp(7, good, w.now()), stamp(0, good, w.now().Add(25*time.Hour)), stamp(0, elsewhere, w.now()),
	} {
		ask(t, r, returnRequest(s))
		require.Zero(t, r.Stats().Names)
	}
	q = returnRequest(stamp(0, good, w.now()))
	q.GetReturn().Stamps[0][5] ^= 1
	bad(pb.NameAnswer_CODE_BAD, q)
	var many []identity.NameStamp
	for range maxReturn + 1 {
		many = append(many, stamp(0, good, w.now()))
	}
	bad(pb.NameAnswer_CODE_BAD, returnRequest(many...))
	require.Zero(t, r.Stats().Names)
	require.Positive(t, r.Stats().Refused)
}

func TestNamesOfOneAccountAreBounded(t *testing.T) {
	w := newTown(t, 1, 1)
	r := w.start(0, memDB(t), true)
	for i := range maxNamesEach {
		_, q := w.aClaim(1, fmt.Sprintf("name%d", i))
		require.Equal(t, pb.NameAnswer_CODE_STAMPED, ask(t, r, q).code)
	}
	_, q := w.aClaim(1, "another")
	require.Equal(t, pb.NameAnswer_CODE_FULL, ask(t, r, q).code)
	_, q = w.aClaim(1, "name3")
	require.Equal(t, pb.NameAnswer_CODE_STAMPED, ask(t, r, q).code)
	_, q = w.aClaim(2, "another")
	require.Equal(t, pb.NameAnswer_CODE_STAMPED, ask(t, r, q).code)
	p := w.come(1)
	_, err := claim(t, p, w, "onemore")
	require.ErrorIs(t, err, ErrTooManyNames)
	require.Equal(t, NameNone, p.Networks()[0].Username.State)
}

func TestRegisterRates(t *testing.T) {
	w := newTown(t, 1, 1)
	r := w.start(0, memDB(t), true)
	n := 0
	for range 200 {
		if r.allow(device(1)) {
			n++
		}
	}
	require.Equal(t, askerBurst, n)
	require.True(t, r.allow(device(2)), "another device is not held back")
	for i := range maxAskers + 10 {
		r.allow(device(10 + i))
		require.LessOrEqual(t, len(r.limits), maxAskers)
	}
	w.clock.add(time.Hour)
	require.True(t, r.allow(device(1)))
}
