package directory

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"hima/identity"
	"hima/storage"
)

// day is early, so that records with small numbers, whose number is also their time, have not expired.
var day = time.Date(1970, 2, 1, 12, 0, 0, 0, time.UTC)

func seed(n int) (s [32]byte) {
	binary.BigEndian.PutUint32(s[:], uint32(n)+1)
	return s
}

func accountKey(n int) identity.AccountKey { return identity.AccountKeyFromSeed(seed(n)) }
func account(n int) identity.AccountID     { return accountKey(n).ID() }
func device(n int) identity.DeviceID       { return identity.DeviceKeyFromSeed(seed(1<<20 + n)).ID() }

func cert(a, d int) identity.Certificate {
	return identity.NewCertificate(accountKey(a), device(d), day)
}

// record makes a record of account a with a number and devices; negative ones are revoked.
func record(t testing.TB, a int, seq uint64, devices ...int) identity.AccountRecord {
	t.Helper()
	c := identity.RecordConfig{LastSeq: seq - 1, Now: time.UnixMilli(0)}
	for _, d := range devices {
		if d < 0 {
			c.Revoked = append(c.Revoked, device(-d))
		} else {
			c.Devices = append(c.Devices, cert(a, d))
		}
	}
	r, err := identity.NewAccountRecord(accountKey(a), c)
	require.NoError(t, err)
	require.Equal(t, seq, r.Seq)
	return r
}

// self is account 0 with device 0 in all tests.
func openDB(t testing.TB, dir string) *storage.DB {
	t.Helper()
	c := storage.Config{Dir: dir, MinFree: 1}
	if dir != "" {
		c.Key = bytes.Repeat([]byte{7}, 32)
	}
	db, err := storage.Open(c)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

func newDirectory(t testing.TB, db *storage.DB, change func(*Config)) *Directory {
	t.Helper()
	c := Config{DB: db, Certificate: cert(0, 0), Now: func() time.Time { return day }}
	if change != nil {
		change(&c)
	}
	d, err := New(c)
	require.NoError(t, err)
	return d
}

func admit(t testing.TB, d *Directory, r identity.AccountRecord) identity.AccountRecord {
	t.Helper()
	got, err := d.Admit(context.Background(), r.Raw())
	require.NoError(t, err)
	return got
}

func TestNewestRecordCountsForEver(t *testing.T) {
	dir := t.TempDir()
	db := openDB(t, dir)
	d := newDirectory(t, db, nil)
	_, ok := d.Record(account(1))
	require.False(t, ok)
	require.False(t, d.Valid(account(1), device(1)))

	admit(t, d, record(t, 1, 10, 1, 2))
	require.True(t, d.Valid(account(1), device(1)))
	got := admit(t, d, record(t, 1, 12, 2, 3))
	require.EqualValues(t, 12, got.Seq)
	// Lower ones are no error and change nothing; what counts is returned.
	for _, seq := range []uint64{1, 10, 11, 12} {
		got = admit(t, d, record(t, 1, seq, 1))
		if seq == 12 {
			continue // another record of the same number: the bytes decide
		}
		require.EqualValues(t, 12, got.Seq)
		require.False(t, d.Valid(account(1), device(1)))
	}
	require.NoError(t, db.Close())

	// After a restart it is the same.
	d = newDirectory(t, openDB(t, dir), nil)
	before, ok := d.Record(account(1))
	require.True(t, ok)
	require.EqualValues(t, 12, before.Seq)
	require.EqualValues(t, 12, admit(t, d, record(t, 1, 11, 1)).Seq)
	require.EqualValues(t, 13, admit(t, d, record(t, 1, 13, 1)).Seq)
	require.True(t, d.Valid(account(1), device(1)))
}

func TestRevokedStaysRevoked(t *testing.T) {
	dir := t.TempDir()
	db := openDB(t, dir)
	d := newDirectory(t, db, nil)
	admit(t, d, record(t, 1, 1, 1, 2))
	admit(t, d, record(t, 1, 2, 2, -1))
	require.False(t, d.Valid(account(1), device(1)))
	// A later record forgets the revocation, and even lists the device again.
	got := admit(t, d, record(t, 1, 3, 1, 2))
	require.False(t, got.Lists(device(1)))
	require.True(t, got.Revokes(device(1)))
	require.False(t, d.Valid(account(1), device(1)))
	require.True(t, d.Valid(account(1), device(2)))
	require.Equal(t, []identity.DeviceID{device(2)}, d.Devices(account(1)))
	require.Equal(t, record(t, 1, 3, 1, 2).Raw(), got.Raw(), "what was signed is passed on unchanged")
	require.NoError(t, db.Close())
	d = newDirectory(t, openDB(t, dir), nil)
	require.False(t, d.Valid(account(1), device(1)))
	admit(t, d, record(t, 1, 4, 1))
	require.False(t, d.Valid(account(1), device(1)))
}

// R13: a device whose record has expired is owed nothing until it is seen again; who it is stays known.
func TestExpiredRecord(t *testing.T) {
	now := day
	d := newDirectory(t, openDB(t, ""), func(c *Config) { c.Now = func() time.Time { return now } })
	r := admit(t, d, record(t, 1, 1, 1))
	require.Equal(t, []identity.DeviceID{device(1)}, d.Devices(account(1)))
	now = r.Expires.Add(identity.ClockSlack)
	require.NotEmpty(t, d.Devices(account(1)), "clocks may be wrong by a day")
	now = now.Add(time.Second)
	require.Empty(t, d.Devices(account(1)))
	require.True(t, d.Valid(account(1), device(1)))
	// It comes back and shows a new one.
	admit(t, d, record(t, 1, uint64(now.UnixMilli()), 1))
	c := identity.RecordConfig{LastSeq: uint64(now.UnixMilli()), Now: now, Devices: []identity.Certificate{cert(1, 1)}}
	fresh, err := identity.NewAccountRecord(accountKey(1), c)
	require.NoError(t, err)
	admit(t, d, fresh)
	require.NotEmpty(t, d.Devices(account(1)))
}

func TestRevocationsAreBounded(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	for i := range 10 {
		devs := []int{1}
		for j := range identity.MaxRevoked {
			devs = append(devs, -(100 + i*identity.MaxRevoked + j))
		}
		admit(t, d, record(t, 1, uint64(i+1), devs...))
	}
	r, _ := d.Record(account(1))
	require.Len(t, r.Revoked, maxRevoked)
	require.True(t, r.Revokes(device(100+10*identity.MaxRevoked-1)), "the newest are kept")
}

func TestAdmitRefuses(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	good := record(t, 1, 5, 1).Raw()
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		_, err := d.Admit(context.Background(), bad)
		require.ErrorIs(t, err, ErrNotAdmitted)
	}
	for _, b := range [][]byte{nil, []byte("garbage"), make([]byte, 1<<20), cert(1, 1).Raw()} {
		_, err := d.Admit(context.Background(), b)
		require.ErrorIs(t, err, ErrNotAdmitted)
	}
	_, ok := d.Record(account(1))
	require.False(t, ok)
}

func TestSetOwn(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	require.Error(t, d.SetOwn(context.Background(), record(t, 1, 1, 1)))
	require.NoError(t, d.SetOwn(context.Background(), record(t, 0, 1, 0)))
	r, ok := d.Record(account(0))
	require.True(t, ok)
	require.True(t, r.Lists(device(0)))
}

// TestRecordsInAnyOrder: whatever order they arrive in, and from however many at once, the newest counts, and no
// reader ever sees an older one after a newer one.
func TestRecordsInAnyOrder(t *testing.T) {
	var all []identity.AccountRecord
	for i := range 12 {
		all = append(all, record(t, 1, uint64(i/2+1), i+1))
	}
	var winner []byte
	rapid.Check(t, func(rt *rapid.T) {
		db, err := storage.Open(storage.Config{})
		require.NoError(rt, err)
		defer db.Close()
		d := newDirectory(t, db, nil)
		order := rapid.Permutation(all).Draw(rt, "order")
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				last := uint64(0)
				for _, r := range order[i*4 : i*4+4] {
					if _, err := d.Admit(context.Background(), r.Raw()); err != nil {
						rt.Errorf("admitting: %v", err)
					}
					r, ok := d.Record(account(1))
					if !ok || r.Seq < last {
						rt.Errorf("number %d after %d", r.Seq, last)
					}
					last = r.Seq
				}
			})
		}
		wg.Wait()
		r, _ := d.Record(account(1))
		if winner == nil {
			winner = r.Raw()
		}
		require.Equal(rt, winner, r.Raw())
	})
}

func TestStrangersArePushedOutByStrangers(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands of signatures")
	}
	contact := account(1)
	d := newDirectory(t, openDB(t, ""), func(c *Config) {
		c.Keep = func(a identity.AccountID) bool { return a == contact }
	})
	require.NoError(t, d.SetOwn(context.Background(), record(t, 0, 1, 0)))
	admit(t, d, record(t, 1, 1, 1))
	admit(t, d, record(t, 2, 1, 2))
	d.Seen(cert(2, 2), "", day) // a stranger who was met
	for i := range maxStrangers + 200 {
		admit(t, d, record(t, 10+i, 1, 10+i))
	}
	n := 0
	require.NoError(t, d.cfg.DB.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte("d/r/"), KeysOnly: true}, func(_, _ []byte) (bool, error) {
			n++
			return true, nil
		})
	}))
	require.LessOrEqual(t, n, maxStrangers+3)
	require.Greater(t, n, maxStrangers/2)
	for _, a := range []identity.AccountID{account(0), contact, account(2), account(10 + maxStrangers + 199)} {
		_, ok := d.Record(a)
		require.True(t, ok)
	}
	require.LessOrEqual(t, len(d.records.records), maxCache)
}

func TestAdmitIsDurableBeforeItReturns(t *testing.T) {
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
	d := newDirectory(t, db, nil)
	admit(t, d, record(t, 1, 1, 1))
	fail = true
	_, err = d.Admit(context.Background(), record(t, 1, 2, 2).Raw())
	require.Error(t, err)
	r, ok := d.Record(account(1))
	require.True(t, ok)
	require.EqualValues(t, 1, r.Seq, "what is not on disk does not count")
}

func FuzzAdmit(f *testing.F) {
	r := record(f, 1, 5, 1, 2, -3)
	f.Add(r.Raw())
	f.Add(record(f, 0, 1, 0).Raw())
	f.Add(r.Raw()[:len(r.Raw())-1])
	f.Add([]byte{})
	db, err := storage.Open(storage.Config{})
	require.NoError(f, err)
	f.Cleanup(func() { db.Close() })
	d := newDirectory(f, db, nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := d.Admit(context.Background(), b)
		if err != nil {
			if !errors.Is(err, ErrNotAdmitted) {
				t.Fatal(err)
			}
			return
		}
		if kept, ok := d.Record(got.Account); !ok || identity.CompareRecords(kept, got) < 0 {
			t.Fatal(fmt.Sprint("admitted and not kept: ", got.Account))
		}
	})
}

func FuzzDecodePage(f *testing.F) {
	f.Add(page{seen: 5, cert: cert(1, 1), addrs: []string{"/ip4/10.0.0.1/tcp/1"}}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := decodePage(b)
		if !ok {
			return
		}
		again, ok := decodePage(p.encode())
		if !ok || again.seen != p.seen || again.cert != p.cert || len(again.addrs) != len(p.addrs) {
			t.Fatal("differs when written again")
		}
	})
}

// Whatever brings a record, what is newer is told of, once and after it is durable; what is older or known is not.
func TestNewerRecordsAreTold(t *testing.T) {
	var d *Directory
	var told []uint64
	d, err := New(Config{
		DB: openDB(t, ""), Certificate: cert(0, 0), OnRecord: func(r identity.AccountRecord) {
			now, ok := d.Record(r.Account)
			require.True(t, ok)
			require.Equal(t, r.Raw(), now.Raw())
			told = append(told, r.Seq)
		},
	})
	require.NoError(t, err)
	for _, r := range []identity.AccountRecord{record(t, 1, 5, 1), record(t, 1, 4, 1, 2), record(t, 1, 5, 1), record(t, 1, 6, 1, 2)} {
		_, err := d.Admit(t.Context(), r.Raw())
		require.NoError(t, err)
	}
	require.NoError(t, d.SetOwn(t.Context(), record(t, 0, 9, 0)))
	_, err = d.Admit(t.Context(), []byte("nothing of the kind"))
	require.ErrorIs(t, err, ErrNotAdmitted)
	require.Equal(t, []uint64{5, 6, 9}, told)
}
