package daemon

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"hima/storage"
)

const (
	// trimEvery is how often memory is looked at; reading the counters costs microseconds.
	trimEvery = 15 * time.Second
	// trimAbove is what must be allocated within trimEvery to count as a burst, and how much more than after the last
	// time must be held for giving back to be worth a collection.
	trimAbove = 8 << 20
)

// tuneRuntime sets what the Go runtime of a process that is the node's alone should know: the soft limit of its heap in bytes,
// and that it keeps a database.
func tuneRuntime(memory int64) {
	debug.SetMemoryLimit(memory)
	storage.RaiseProcessors()
}

// trimMemory gives freed heap back to the system once a burst is over: Go keeps it for minutes, and a messenger that is
// left running is judged by what it holds while nothing happens. It looks again afterwards, since the database lets go of
// what a compaction took only some seconds later.
func trimMemory(ctx context.Context) error {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var allocated, least uint64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
		metrics.Read(s)
		grown := s[0].Value.Uint64() - allocated
		allocated = s[0].Value.Uint64()
		if grown < trimAbove && memoryInUse() > least+trimAbove {
			debug.FreeOSMemory()
			least = memoryInUse()
		}
	}
}
