package directory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/node"
	"hima/node/nodetest"
)

// samples are durations of one thing measured again and again.
type samples []time.Duration

// at returns a percentile, p in 0..1.
func (s samples) at(p float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}

// TestLookupTimes measures, among HIMA_LOOKUP nodes at 50 ms one way in virtual time, how long searching a name and
// fetching a record take beside a bare get of the table in the same run. internal/bench runs it and reads its last line.
func TestLookupTimes(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("HIMA_LOOKUP"))
	if err != nil {
		t.Skip("measured by: go run ./internal/bench lookup")
	}
	var bare, names, records samples
	missed := 0
	started := time.Now()
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 1, 50*time.Millisecond)
		if n > 500 {
			s.conns = 64 // a thousand nodes must fit the machine
		}
		s.fill(n)
		time.Sleep(5 * time.Minute) // a network that is there: everybody has looked around twice
		const askers, rounds = 6, 15
		keys, found := s.strew(t, askers*rounds)
		for i := range askers {
			q, _ := s.person()
			awaitTable(t, q)
			time.Sleep(30 * time.Second) // it has looked around
			table := q.nets.list()[0].dht()
			for k := range rounds {
				at := i*rounds + k
				// Different keys each, so that no look-up profits from the connections of another.
				start := time.Now()
				_, err := table.Get(s.ctx, identity.DeviceRecordKey(keys[at]))
				bare = append(bare, time.Since(start))
				missed += s.missed(t, table, keys[at], err)
				start = time.Now()
				_, err = q.FetchDevice(s.ctx, keys[askers*rounds+at])
				records = append(records, time.Since(start))
				missed += s.missed(t, table, keys[askers*rounds+at], err)
				start = time.Now()
				res, err := q.SearchName(s.ctx, found[at])
				names = append(names, time.Since(start))
				require.NoError(t, err)
				require.Len(t, res.People, 1)
				require.True(t, res.People[0].Confirmed)
				require.False(t, res.Disagreement)
			}
		}
	})
	require.LessOrEqual(t, missed, len(bare)/50, "look-ups that found nothing")
	b, err := json.Marshal(map[string]any{
		"nodes": n, "looked": len(bare), "missed": missed,
		"bare_p50": bare.at(0.5), "bare_p95": bare.at(0.95), "record_p50": records.at(0.5), "record_p95": records.at(0.95),
		"name_p50": names.at(0.5), "name_p95": names.at(0.95), "wall": time.Since(started),
	})
	require.NoError(t, err)
	fmt.Printf("LOOKUP %s\n", b)
}

// missed counts a look-up that found nothing, and says who would have had it.
func (s *sim) missed(t *testing.T, asker dht, dev identity.DeviceID, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	require.True(t, errors.Is(err, node.ErrNoRecord) || errors.Is(err, ErrNotFound), err)
	for who, table := range map[string]dht{"asker": asker, "putter": s.tables[0].table} {
		answers, err := table.Ask(s.ctx, identity.DeviceRecordKey(dev))
		held := 0
		for _, a := range answers {
			if a.Value != nil {
				held++
			}
		}
		t.Logf("missed %s: by the %s's closest %d of %d have it, %d in its table, %v", dev.Short(), who, held, len(answers), table.Peers(), err)
	}
	return 1
}

// strew puts n names that are registered and 2n device records into the table, by way of the bootstrap node, which is
// connected to most.
func (s *sim) strew(t *testing.T, n int) (devices []identity.DeviceID, names []string) {
	t.Helper()
	put := func(key string, raw []byte) { require.NoError(t, s.tables[0].table.Put(s.ctx, key, raw)) }
	for i := range 2 * n {
		r := deviceRecord(t, 1+i, 1+i, time.Now(), 0)
		devices = append(devices, r.Device)
		put(identity.DeviceRecordKey(r.Device), r.Raw())
	}
	for i := range n {
		name := fmt.Sprintf("name%d", i)
		claim, err := identity.NewNameClaim(accountKey(1+i), s.link.ID(), name, time.Now())
		require.NoError(t, err)
		stamp, err := identity.NewNameStamp(nodetest.Key(s.boots[0]), claim, time.Now())
		require.NoError(t, err)
		require.NoError(t, s.regs[0].accept(context.Background(), stamp))
		put(identity.NameKey(s.link.ID(), name), identity.StampedName(stamp).Raw())
		names = append(names, name)
	}
	return devices, names
}
