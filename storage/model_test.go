package storage

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestOverlaysAgainstModel draws functions that read, write and scan, puts them into one group or several, lets some
// fail, and compares every read with a plain map.
func TestOverlaysAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		db, err := Open(Config{})
		require.NoError(t, err)
		defer func() { require.NoError(t, db.Close()) }()
		model := map[string]string{schemaKey: "\x01"}
		for range rapid.IntRange(1, 6).Draw(t, "groups") {
			release := blockCommitter(db)
			defer release() // Draw leaves by panic when rapid shrinks
			var wg sync.WaitGroup
			for range rapid.IntRange(1, 6).Draw(t, "overlays") {
				steps := rapid.SliceOfN(genStep(), 0, 12).Draw(t, "steps")
				fail := rapid.Bool().Draw(t, "fail")
				next := maps.Clone(model)
				expect := make([]string, len(steps))
				for i, s := range steps {
					expect[i] = s.model(next)
				}
				if !fail {
					model = next
				}
				wg.Add(1)
				got := make([]string, len(steps))
				db.Submit(func(tx *Tx) error {
					for i, s := range steps {
						got[i] = s.real(tx)
					}
					if fail {
						return errors.New("discarded")
					}
					return nil
				}, func(error) {
					defer wg.Done()
					if !slices.Equal(got, expect) {
						t.Errorf("got %q, want %q, steps %+v", got, expect, steps)
					}
				})
			}
			release()
			wg.Wait()
			db.mu.Lock()
			for db.running {
				db.idle.Wait()
			}
			if rapid.Bool().Draw(t, "full") {
				db.journal.keys = journalKeys // the next group empties the journal
			}
			db.mu.Unlock()
		}
		all := step{op: "scan"}
		_ = db.View(func(tx *Tx) error {
			if got, want := all.real(tx), all.model(model); got != want {
				t.Errorf("at the end %s, want %s", got, want)
			}
			return nil
		})
	})
}

type step struct {
	op, key, value string
	scan           ScanOptions
}

func genStep() *rapid.Generator[step] {
	key := rapid.StringMatching(`[ab\xff]{1,3}`)
	return rapid.Custom(func(t *rapid.T) step {
		return step{
			op:    rapid.SampledFrom([]string{"get", "has", "set", "set", "delete", "scan", "scan+delete"}).Draw(t, "op"),
			key:   key.Draw(t, "key"),
			value: rapid.StringN(0, 3, -1).Draw(t, "value"),
			scan: ScanOptions{
				Prefix:   []byte(rapid.SampledFrom([]string{"", "", "a", "b", "ab", "\xff"}).Draw(t, "prefix")),
				Start:    []byte(rapid.SampledFrom([]string{"", "", "a", "ab", "b", "ba", "\xff"}).Draw(t, "start")),
				Reverse:  rapid.Bool().Draw(t, "reverse"),
				KeysOnly: rapid.Bool().Draw(t, "keys"),
				Limit:    rapid.IntRange(0, 3).Draw(t, "limit"),
			},
		}
	})
}

func (s step) real(tx *Tx) string {
	switch s.op {
	case "get":
		v, err := tx.Get([]byte(s.key))
		if err != nil {
			return err.Error()
		}
		return string(v)
	case "has":
		ok, err := tx.Has([]byte(s.key))
		if err != nil || !ok {
			return "no"
		}
		return "yes"
	case "set":
		if err := tx.Set([]byte(s.key), []byte(s.value)); err != nil {
			return err.Error()
		}
	case "delete":
		if err := tx.Delete([]byte(s.key)); err != nil {
			return err.Error()
		}
	default:
		var b strings.Builder
		err := tx.Scan(s.scan, func(k, v []byte) (bool, error) {
			b.WriteString(string(k) + "=" + string(v) + ";")
			if s.op == "scan+delete" {
				return true, tx.Delete(k)
			}
			return true, nil
		})
		if err != nil {
			return err.Error()
		}
		return b.String()
	}
	return ""
}

func (s step) model(m map[string]string) string {
	switch s.op {
	case "get":
		if v, ok := m[s.key]; ok {
			return v
		}
		return ErrNotFound.Error()
	case "has":
		if _, ok := m[s.key]; ok {
			return "yes"
		}
		return "no"
	case "set":
		m[s.key] = s.value
		return ""
	case "delete":
		delete(m, s.key)
		return ""
	}
	keys := slices.Sorted(maps.Keys(m))
	if s.scan.Reverse {
		slices.Reverse(keys)
	}
	var b strings.Builder
	n := 0
	for _, k := range keys {
		start := string(s.scan.Start)
		if !bytes.HasPrefix([]byte(k), s.scan.Prefix) || start != "" && (!s.scan.Reverse && k < start || s.scan.Reverse && k > start) {
			continue
		}
		if n++; s.scan.Limit > 0 && n > s.scan.Limit {
			break
		}
		v := m[k]
		if s.scan.KeysOnly {
			v = ""
		}
		b.WriteString(k + "=" + v + ";")
		if s.op == "scan+delete" {
			delete(m, k)
		}
	}
	return b.String()
}
