package storage

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// BenchmarkDurableSets measures synced writes of 200 bytes by many writers at once, first as Badger does them on the same
// disk in the same run (every writer its own transaction; one transaction of many, which is the most it can do), then
// through Update and Submit. One operation is one Set.
func BenchmarkDurableSets(b *testing.B) {
	value := make([]byte, 200)
	for _, writers := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("badger/own-txn/%d", writers), func(b *testing.B) {
			db := bareBadger(b)
			parallel(b, writers, func(key []byte) error {
				return db.Update(func(txn *badger.Txn) error { return txn.Set(key, value) })
			})
		})
		b.Run(fmt.Sprintf("badger/one-txn/%d", writers), func(b *testing.B) {
			db := bareBadger(b)
			for done := 0; done < b.N; {
				n := min(writers, b.N-done)
				if err := db.Update(func(txn *badger.Txn) error {
					for i := range n {
						if err := txn.Set(benchKey(i%64, done+i), value); err != nil {
							return err
						}
					}
					return nil
				}); err != nil {
					b.Fatal(err)
				}
				done += n
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sets/s")
		})
		b.Run(fmt.Sprintf("update/%d", writers), func(b *testing.B) {
			db, err := Open(Config{Dir: b.TempDir(), Key: testKey()})
			if err != nil {
				b.Fatal(err)
			}
			parallel(b, writers, func(key []byte) error {
				return db.Update(context.Background(), func(tx *Tx) error { return tx.Set(key, value) })
			})
			s := db.Stats()
			b.ReportMetric(float64(s.Writes)/float64(s.Commits), "sets/commit")
			b.ReportMetric(s.CommitTime.Seconds()/b.Elapsed().Seconds(), "committing")
			_ = db.Close()
		})
	}
}

func bareBadger(b *testing.B) *badger.DB {
	db, err := badger.Open(badger.DefaultOptions(b.TempDir()).WithLogger(nil).WithSyncWrites(true).WithMemTableSize(memTableSize).
		WithNumMemtables(2).WithValueLogFileSize(valueLogSize).WithBlockCacheSize(blockCacheSize).WithIndexCacheSize(indexCacheSize).
		WithNumCompactors(2).WithNumLevelZeroTables(levelZeroTables).WithNumLevelZeroTablesStall(levelZeroStall).WithNumGoroutines(2).
		WithCompression(options.None).WithMetricsEnabled(false).WithDetectConflicts(false).WithEncryptionKey(testKey()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	return db
}

// benchKey looks like one of a feed: entries of a writer lie side by side.
func benchKey(writer, n int) []byte { return fmt.Appendf(nil, "r/e/%04d/%012d", writer, n) }

func parallel(b *testing.B, writers int, write func(key []byte) error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for w := range writers {
		wg.Go(func() {
			for {
				n := int(next.Add(1))
				if n > b.N {
					return
				}
				if err := write(benchKey(w, n)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sets/s")
}

// BenchmarkGroup measures what one overlay costs without a disk: a get of its own tip, two sets, and every tenth a short
// scan, a thousand to a group, as messages arrive.
func BenchmarkGroup(b *testing.B) {
	db, err := Open(Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	value := make([]byte, 200)
	var wg sync.WaitGroup
	b.ReportAllocs()
	for i := range b.N {
		wg.Add(1)
		feed := rand.IntN(50)
		db.Submit(func(tx *Tx) error {
			tip := fmt.Appendf(nil, "r/t/%d", feed)
			if _, err := tx.Has(tip); err != nil {
				return err
			}
			if err := tx.Set(tip, value[:40]); err != nil {
				return err
			}
			if i%10 == 0 {
				if err := tx.Scan(ScanOptions{Prefix: fmt.Appendf(nil, "r/e/%d/", feed), Reverse: true, Limit: 3},
					func(_, _ []byte) (bool, error) { return true, nil }); err != nil {
					return err
				}
			}
			return tx.Set(fmt.Appendf(nil, "r/e/%d/%d", feed, i), value)
		}, func(err error) {
			if err != nil {
				b.Error(err)
			}
			wg.Done()
		})
		if i%5000 == 4999 {
			wg.Wait()
		}
	}
	wg.Wait()
}
