package storage

// Bounds of what the committer remembers. A row above recentRow is not worth it, and what is read once in a while is
// forgotten all at once, which costs nothing to keep account of.
const (
	recentRow   = 1 << 10
	recentRows  = 4096
	recentBytes = 512 << 10
)

// recent is what functions asked the committer for last, as it is on disk. One message reads a dozen rows, the same as
// the message before it; from Badger each takes a few microseconds, a tenth of what the message takes in all. Nobody
// else writes, so it is never stale. Only the committer uses it.
type recent struct {
	rows  map[string]write
	bytes int
}

func (r *recent) get(key []byte) (write, bool) {
	w, ok := r.rows[string(key)]
	return w, ok
}

// note remembers what Badger said of a key.
func (r *recent) note(key []byte, w write) {
	if len(w.value) > recentRow {
		return
	}
	if r.rows == nil || len(r.rows) >= recentRows || r.bytes >= recentBytes {
		r.rows, r.bytes = make(map[string]write), 0
	}
	r.rows[string(key)] = w
	r.bytes += cost(string(key), w)
}

// committed follows a group that is on disk. What nobody asked for is not taken in: most rows are written once.
func (r *recent) committed(group *pending) {
	if len(r.rows) == 0 {
		return
	}
	for key, w := range group.writes {
		old, ok := r.rows[key]
		if !ok {
			continue
		}
		r.bytes -= cost(key, old)
		if len(w.value) > recentRow {
			delete(r.rows, key)
			continue
		}
		r.rows[key] = w
		r.bytes += cost(key, w)
	}
}
