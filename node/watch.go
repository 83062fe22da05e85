package node

import (
	"context"
	"slices"
	"time"
)

// watch looks at the machine's interfaces every few seconds. Asking the kernel to tell would be cheaper still, and is
// another mechanism on every system; this one costs a few microseconds.
func (n *Node) watch(ctx context.Context) {
	last := n.before
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
		slept := jumped(now.Round(0).Sub(seen.Round(0)), now.Sub(seen)) // Round(0) strips the steady clock's reading
		seen = now
		if slices.Equal(cur, last) && !slept {
			continue
		}
		last = cur
		n.log.Info("network changed", "addresses", len(cur), "slept", slept)
		n.closeStranded()
		n.lan.poke()
		n.reach.moved()
		n.keeper.pokeAll()
		n.punch.again()
		n.hub.publish(NetworkChanged{})
		n.addrsChanged()
	}
}

// jumped reports whether the wall clock moved otherwise than the steady clock, which stands still while the machine
// sleeps. A clock that somebody set looks the same, and looking around once more does no harm.
func jumped(wall, steady time.Duration) bool { return (wall - steady).Abs() > sleepJump }
