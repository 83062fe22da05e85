package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// crashed writes small groups and returns the folder as a process leaves it that does not close.
func crashed(t *testing.T, groups int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	crash := false
	db, err := Open(Config{Dir: dir, Key: testKey(), Fail: func(p string) error {
		if crash && p == "before-commit" {
			return errors.New("crash")
		}
		return nil
	}})
	require.NoError(t, err)
	for i := range groups {
		set(t, db, fmt.Sprint("k", i), fmt.Sprint(i))
		set(t, db, "hot", fmt.Sprint(i))
	}
	crash = true
	require.Error(t, db.Update(t.Context(), func(tx *Tx) error { return tx.Set([]byte("never"), nil) }))
	require.NoError(t, db.Close())
	return dir
}

func TestJournalIsTakenUp(t *testing.T) {
	dir := crashed(t, 5)
	for range 2 { // a clean end leaves it as it is
		db := openAt(t, Config{Dir: dir})
		for i := range 5 {
			require.Equal(t, fmt.Sprint(i), get(t, db, fmt.Sprint("k", i)))
		}
		require.Equal(t, "4", get(t, db, "hot"))
		require.Equal(t, "-", get(t, db, "never"))
		require.NoError(t, db.Close())
	}
}

// TestCleanEndsLeaveNoTables: a process that wrote little makes no work for the next one, however often that happens, and
// the journal is emptied before it is full.
func TestCleanEndsLeaveNoTables(t *testing.T) {
	dir := t.TempDir()
	tables := func() []string {
		names, err := filepath.Glob(filepath.Join(dir, "*.sst"))
		require.NoError(t, err)
		return names
	}
	require.NoError(t, openAt(t, Config{Dir: dir}).Close())
	made := len(tables()) // what Badger was told of the journal
	for i := range 20 {
		db := openAt(t, Config{Dir: dir})
		set(t, db, fmt.Sprint("k", i), fmt.Sprint(i))
		require.NoError(t, db.Close())
	}
	require.Len(t, tables(), made)
	for i := range 14 {
		db := openAt(t, Config{Dir: dir})
		set(t, db, fmt.Sprint("large", i), string(make([]byte, journalGroup*3/4)))
		require.NoError(t, db.Close())
		require.LessOrEqual(t, db.journal.at, int64(journalSize/2))
	}
	require.Greater(t, len(tables()), made)
	db := openAt(t, Config{Dir: dir})
	for i := range 20 {
		require.Equal(t, fmt.Sprint(i), get(t, db, fmt.Sprint("k", i)))
	}
	require.Len(t, get(t, db, "large13"), journalGroup*3/4)
}

// TestJournalDamagedAfterACleanEnd: what the last record holds was acknowledged, and nobody was writing it.
func TestJournalDamagedAfterACleanEnd(t *testing.T) {
	dir := t.TempDir()
	db := openAt(t, Config{Dir: dir})
	set(t, db, "k", "1")
	last := db.journal.at
	set(t, db, "k", "2")
	require.NoError(t, db.Close())
	path := filepath.Join(dir, journalName)
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	raw[last+recordHead] ^= 1
	require.NoError(t, os.WriteFile(path, raw, 0o600))
	_, err = Open(Config{Dir: dir, Key: testKey()})
	require.ErrorIs(t, err, ErrDamaged)
}

// TestTornJournal: whatever is left of a record that was being written, all before it is there.
func TestTornJournal(t *testing.T) {
	dir := crashed(t, 3)
	path := filepath.Join(dir, journalName)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, journalFile, len(whole))
	var ends []int // of records
	for at := 0; ; {
		size := int(binary.BigEndian.Uint32(whole[at:]))
		if size == 0 {
			break
		}
		at += recordHead + size
		ends = append(ends, at)
	}
	last, before := ends[len(ends)-1], ends[len(ends)-2]
	damage := map[string]func(raw []byte) []byte{
		"cut off":          func(raw []byte) []byte { return raw[:last-1] },
		"only its length":  func(raw []byte) []byte { clear(raw[before+recordHead:]); return raw },
		"only the end":     func(raw []byte) []byte { clear(raw[before : before+recordHead]); return raw },
		"one bit":          func(raw []byte) []byte { raw[before+20] ^= 1; return raw },
		"a length too far": func(raw []byte) []byte { raw[before] = 0xff; return raw },
		"one before again": func(raw []byte) []byte { copy(raw[before:], raw[:ends[0]]); return raw },
	}
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			copied := t.TempDir()
			require.NoError(t, os.CopyFS(copied, os.DirFS(dir)))
			raw := append([]byte(nil), whole...)
			require.NoError(t, os.WriteFile(filepath.Join(copied, journalName), f(raw), 0o600))
			db := openAt(t, Config{Dir: copied})
			require.Equal(t, "1", get(t, db, "hot"))
			require.Equal(t, "2", get(t, db, "k2"))
			set(t, db, "hot", "again") // where the torn one was
			db.failed = errors.New("crash")
			require.NoError(t, db.Close())
			db = openAt(t, Config{Dir: copied})
			require.Equal(t, "again", get(t, db, "hot"))
			require.Equal(t, "2", get(t, db, "k2"))
		})
	}
}

// TestJournalDamagedInTheMiddle: a record that others follow was whole once, and what it held was acknowledged.
func TestJournalDamagedInTheMiddle(t *testing.T) {
	dir := crashed(t, 3)
	path := filepath.Join(dir, journalName)
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	raw[recordHead+20] ^= 1
	require.NoError(t, os.WriteFile(path, raw, 0o600))
	_, err = Open(Config{Dir: dir, Key: testKey()})
	require.ErrorIs(t, err, ErrDamaged)
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, raw, after, "nothing was changed")
}

func TestJournalThatIsMissing(t *testing.T) {
	dir := crashed(t, 1)
	require.NoError(t, os.Remove(filepath.Join(dir, journalName)))
	_, err := Open(Config{Dir: dir, Key: testKey()})
	require.ErrorIs(t, err, ErrDamaged)
}

// TestJournalOfANewerVersion: a database that is refused is not changed, nor is what its journal holds.
func TestJournalOfANewerVersion(t *testing.T) {
	dir := crashed(t, 1)
	db, err := Open(Config{Dir: dir, Key: testKey()})
	require.NoError(t, err)
	require.NoError(t, db.Update(t.Context(), func(tx *Tx) error { return setVersion(tx, 7) }))
	db.failed = errors.New("crash")
	require.NoError(t, db.Close())
	before, err := os.ReadFile(filepath.Join(dir, journalName))
	require.NoError(t, err)
	for range 2 {
		_, err = Open(Config{Dir: dir, Key: testKey()})
		require.ErrorIs(t, err, ErrNewer)
	}
	after, err := os.ReadFile(filepath.Join(dir, journalName))
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// TestCrashWhileTheJournalIsEmptied: on both sides of the transaction that takes it over nothing is lost.
func TestCrashWhileTheJournalIsEmptied(t *testing.T) {
	for _, point := range []string{"before-flush", "after-flush"} {
		t.Run(point, func(t *testing.T) {
			dir, crash := t.TempDir(), errors.New("crash")
			on := false
			db := openAt(t, Config{Dir: dir, Fail: func(p string) error {
				if on && p == point {
					return crash
				}
				return nil
			}})
			set(t, db, "k", "1")
			set(t, db, "l", "1")
			set(t, db, "k", "2")
			on = true
			large := func(tx *Tx) error { return tx.Set([]byte("l"), make([]byte, journalGroup)) }
			require.ErrorIs(t, db.Update(t.Context(), large), crash)
			require.Equal(t, "2", get(t, db, "k"))
			require.NoError(t, db.Close())
			db = openAt(t, Config{Dir: dir})
			require.Equal(t, "2", get(t, db, "k"))
			require.Equal(t, "1", get(t, db, "l"))
			require.NoError(t, db.Update(t.Context(), large))
			require.Len(t, get(t, db, "l"), journalGroup)
		})
	}
}

// fill writes rows until the journal begins its next epoch, and returns how many.
func fill(t *testing.T, db *DB, begin int) (end int) {
	t.Helper()
	for epoch := db.journal.epoch; db.journal.epoch == epoch; begin++ {
		set(t, db, fmt.Sprint("k", begin), fmt.Sprint(begin)+string(make([]byte, journalGroup/2)))
	}
	return begin
}

// TestWritingGoesOnWhileTheJournalMoves: nobody waits for Badger, everything reads as it was written, and a process that ends
// before the move does loses nothing of both epochs.
func TestWritingGoesOnWhileTheJournalMoves(t *testing.T) {
	for name, last := range map[string]int{"nothing more": 0, "a row more": 1, "half an epoch more": journalSize / journalGroup, "an epoch more": -1} {
		t.Run(name, func(t *testing.T) {
			dir, moving, end := t.TempDir(), make(chan struct{}), make(chan struct{})
			db := openAt(t, Config{Dir: dir, Fail: func(p string) error {
				if p != "before-flush" {
					return nil
				}
				close(moving)
				<-end
				return errors.New("crash")
			}})
			n := fill(t, db, 0)
			<-moving
			for range last {
				set(t, db, fmt.Sprint("k", n), fmt.Sprint(n))
				n++
			}
			if last < 0 {
				// There is no third half: the next epoch waits for the move, which fails.
				for !t.Failed() && db.journal.fits(&pending{bytes: journalGroup / 2}) {
					set(t, db, fmt.Sprint("k", n), fmt.Sprint(n)+string(make([]byte, journalGroup/2)))
					n++
				}
				close(end)
				require.ErrorIs(t, db.Update(t.Context(), func(tx *Tx) error {
					return tx.Set([]byte(fmt.Sprint("k", n)), make([]byte, journalGroup/2))
				}), ErrFailed)
			} else {
				close(end)
			}
			holds(t, db, n)
			require.NoError(t, db.Close())
			for range 3 {
				db = openAt(t, Config{Dir: dir})
				holds(t, db, n)
				n = fill(t, db, n)
				holds(t, db, n)
				require.NoError(t, db.Close())
			}
		})
	}
}

// TestCrashAgainWithTwoEpochs: two epochs that a process left behind have no room beside them for a third. The second process ends
// in the middle of the move, too.
func TestCrashAgainWithTwoEpochs(t *testing.T) {
	dir, end := t.TempDir(), make(chan struct{})
	crashing := Config{Dir: dir, Fail: func(p string) error {
		if p != "before-flush" {
			return nil
		}
		<-end
		return errors.New("crash")
	}}
	db := openAt(t, crashing)
	n := fill(t, db, 0)
	close(end)
	require.NoError(t, db.Close())
	db = openAt(t, crashing)
	var err error
	for i := n; err == nil && i < n+2*journalSize/journalGroup*2; i++ {
		err = db.Update(t.Context(), func(tx *Tx) error {
			return tx.Set(fmt.Append(nil, "k", i), fmt.Append(nil, i, string(make([]byte, journalGroup/2))))
		})
		if err == nil {
			n = i + 1
		}
	}
	require.ErrorIs(t, err, ErrFailed)
	require.NoError(t, db.Close())
	db = openAt(t, Config{Dir: dir})
	holds(t, db, n)
	require.Equal(t, "-", get(t, db, fmt.Sprint("k", n)))
}

func holds(t *testing.T, db *DB, n int) {
	t.Helper()
	for i := range n {
		require.Equal(t, fmt.Sprint(i), string(bytes.TrimRight([]byte(get(t, db, fmt.Sprint("k", i))), "\x00")))
	}
	require.Equal(t, "-", get(t, db, fmt.Sprint("k", n)))
}

// TestJournalDamagedBeforeTheNextEpoch: an epoch that another one follows was whole, so its last record is not one that was
// being written.
func TestJournalDamagedBeforeTheNextEpoch(t *testing.T) {
	dir := t.TempDir()
	var at int64 // the last record of the first epoch
	db := openAt(t, Config{Dir: dir, Fail: func(p string) error {
		if p == "before-flush" {
			return errors.New("crash")
		}
		return nil
	}})
	for before := int64(0); db.journal.epoch == 0; {
		at, before = before, db.journal.at
		require.NoError(t, db.Update(t.Context(), func(tx *Tx) error { return tx.Set([]byte("k"), make([]byte, journalGroup/2)) }))
	}
	_ = db.Close()
	path := filepath.Join(dir, journalName)
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	raw[at+recordHead] ^= 1
	require.NoError(t, os.WriteFile(path, raw, 0o600))
	_, err = Open(Config{Dir: dir, Key: testKey()})
	require.ErrorIs(t, err, ErrDamaged)
}

// TestJournalWithoutHalves: what a version left that had one half is taken over, whichever half the epoch would have now.
func TestJournalWithoutHalves(t *testing.T) {
	for _, epoch := range []uint64{1, 2} {
		t.Run(fmt.Sprint("epoch ", epoch), func(t *testing.T) {
			dir := t.TempDir()
			db := openAt(t, Config{Dir: dir})
			for db.journal.epoch < epoch {
				set(t, db, "k", "small")
				set(t, db, "l", string(make([]byte, journalGroup))) // too large, so the journal is emptied first
			}
			db.failed = errors.New("crash") // closes without writing
			require.NoError(t, db.Close())
			j := journal{key: testKey()}
			require.NoError(t, j.begin(epoch, 0))
			raw := make([]byte, journalSize)
			for _, value := range []string{"1", "2"} {
				plain := appendWrite(nil, "old", write{value: []byte(value)})
				record := j.aead.Seal(make([]byte, recordHead), nil, plain, place(j.count))
				binary.BigEndian.PutUint32(record, uint32(len(record)-recordHead))
				copy(raw[j.at:], record)
				j.wrote(int64(len(record)), 1)
			}
			require.NoError(t, os.WriteFile(filepath.Join(dir, journalName), raw, 0o600))
			for i := range 3 {
				db := openAt(t, Config{Dir: dir})
				require.Equal(t, "2", get(t, db, "old"))
				for k := range i {
					require.Equal(t, fmt.Sprint(k), get(t, db, fmt.Sprint("new", k)))
				}
				set(t, db, fmt.Sprint("new", i), fmt.Sprint(i))
				require.NoError(t, db.Close())
			}
		})
	}
}

// TestJournalThatCannotBeWritten: nothing is said to be written any more, and what was acknowledged is there.
func TestJournalThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	db, err := Open(Config{Dir: dir, Key: testKey()})
	require.NoError(t, err)
	set(t, db, "k", "1")
	require.NoError(t, db.journal.file.Close())
	hook := false
	err = db.Update(t.Context(), func(tx *Tx) error {
		tx.OnCommit(func() { hook = true })
		return tx.Set([]byte("k"), []byte("2"))
	})
	require.ErrorIs(t, err, ErrFailed)
	require.False(t, hook)
	require.Equal(t, "1", get(t, db, "k"))
	require.ErrorIs(t, db.Update(t.Context(), func(*Tx) error { return nil }), ErrFailed)
	require.Error(t, db.Close())
	require.Equal(t, "1", get(t, openAt(t, Config{Dir: dir}), "k"))
}

// TestReadersSeeOneState: small groups go to the journal and large ones to Badger, and whatever moves while somebody
// reads, what was written together is seen together.
func TestReadersSeeOneState(t *testing.T) {
	db := openAt(t, Config{})
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				err := db.View(func(tx *Tx) error {
					var seen []string
					err := tx.Scan(ScanOptions{Prefix: []byte("pair/")}, func(_, v []byte) (bool, error) {
						seen = append(seen, string(v))
						return true, nil
					})
					if one, _ := tx.Get([]byte("pair/0")); len(seen) == 2 && (seen[0] != seen[1] || seen[0] != string(one)) {
						return fmt.Errorf("saw %s, %s and %s at once", seen[0], seen[1], one)
					}
					return err
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	large := make([]byte, journalGroup)
	for i := range 600 {
		require.NoError(t, db.Update(context.Background(), func(tx *Tx) error {
			if i%3 == 0 {
				if err := tx.Set([]byte("large"), large); err != nil {
					return err
				}
			}
			return errors.Join(tx.Set([]byte("pair/0"), fmt.Append(nil, i)), tx.Set([]byte("pair/1"), fmt.Append(nil, i)))
		}))
	}
	stop.Store(true)
	wg.Wait()
}

// TestLayersStayFew: however many groups are in the journal, a reader has few places to look at, and the file is emptied
// when it is full.
func TestLayersStayFew(t *testing.T) {
	db := openAt(t, Config{Dir: t.TempDir()})
	epochs := map[uint64]bool{}
	for i := range 400 {
		set(t, db, fmt.Sprint("k", i), string(make([]byte, 1000)))
		require.LessOrEqual(t, len(db.published()), 14)
		epochs[db.journal.epoch] = true
	}
	require.Len(t, epochs, 2)
	rested(db)
	require.NoError(t, db.settle(true))
	left := 0
	for _, l := range db.published() {
		left += len(l.writes)
	}
	require.Less(t, left, 400, "what moved to Badger is in memory no more")
	for i := range 400 {
		require.Len(t, get(t, db, fmt.Sprint("k", i)), 1000)
	}
}

// TestOldLayersAreNotLaidOnNewSnapshots: the moment that TestReadersSeeOneState hits too rarely.
func TestOldLayersAreNotLaidOnNewSnapshots(t *testing.T) {
	db := openAt(t, Config{})
	set(t, db, "k", "small")
	rested(db)
	before := db.layers.Load()
	s, ok := db.snapshotUnder(before)
	require.True(t, ok)
	s.discard()
	set(t, db, "k", string(make([]byte, journalGroup))) // to Badger, past what before says of it
	_, ok = db.snapshotUnder(before)
	require.False(t, ok)
}

// TestCloseEndsTheMoveThatTheCacheBegan: what the cache holds may be what does not fit the journal any more. The files are
// closed after the move that this begins, not during it.
func TestCloseEndsTheMoveThatTheCacheBegan(t *testing.T) {
	dir, slow := t.TempDir(), false
	db := openAt(t, Config{Dir: dir, Fail: func(p string) error {
		if slow && p == "before-flush" {
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	}})
	n := 0
	for db.journal.fits(&pending{bytes: journalGroup / 2}) {
		set(t, db, fmt.Sprint("k", n), fmt.Sprint(n)+string(make([]byte, journalGroup/2-100)))
		n++
	}
	slow = true
	require.NoError(t, db.Cache(func(tx *Tx) error { return tx.Set([]byte("cached"), make([]byte, journalGroup/2)) }))
	require.NoError(t, db.Close())
	require.Nil(t, db.moving)
	require.NoError(t, db.broken())
	db = openAt(t, Config{Dir: dir})
	holds(t, db, n)
	require.Len(t, get(t, db, "cached"), journalGroup/2)
}
