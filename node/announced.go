package node

import (
	"slices"
	"time"

	"hima/identity"
)

// announcedFor is how long an announcement counts: announcements come every two minutes, and one may be lost.
const announcedFor = 5 * time.Minute

// Announced lists the devices that announced themselves on the LAN lately. It is for those who subscribe late: each
// was told as [Found] when it happened.
func (n *Node) Announced() []identity.DeviceID {
	n.lan.mu.Lock()
	defer n.lan.mu.Unlock()
	var out []identity.DeviceID
	for dev, at := range n.lan.seen {
		if time.Since(at) < announcedFor {
			out = append(out, dev)
		}
	}
	slices.SortFunc(out, func(a, b identity.DeviceID) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
	return out
}
