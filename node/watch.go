package node

import (
	"context"
	"slices"
	"time"
)

// watch looks at the machine's interfaces every few seconds. Asking the kernel to tell would be cheaper still, and is
// another mechanism on every system; this one costs a few microseconds.
func (n *Node) watch(ctx context.Context) {
	last := n.ifaces()
	seen := time.Now()
	t := time.NewTicker(watchInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now, cur := time.Now(), n.ifaces()
		slept := jumped(seen, now)
		seen = now
		if slices.Equal(cur, last) && !slept {
			continue
		}
		last = cur
		n.log.Info("network changed", "addresses", len(cur), "slept", slept)
		n.closeStranded()
		n.lan.poke()
		n.hub.publish(NetworkChanged{})
	}
}

// jumped reports whether the wall clock moved otherwise than the steady clock, which stands still while the machine
// sleeps. A clock that somebody set looks the same, and looking around once more does no harm.
func jumped(from, to time.Time) bool {
	d := to.Round(0).Sub(from.Round(0)) - to.Sub(from)
	return d > sleepJump || d < -sleepJump
}
