package replica

import "hima/internal/feed"

// Record lets a test see every run that goes onto the wire.
func (r *Replica) Record(wrote func(to Peer, id feed.FeedID, from, last uint64)) { r.wrote = wrote }
