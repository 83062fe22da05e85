package daemon

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The marker tells a profile from a copy of it (R3: a restored copy of a database never continues an old feed).
//
// It is a file that names itself: machine, inode and birth time. Whoever restores a backup or copies the folder makes a
// new file with the old content, and the two no longer agree. It also holds a token that is changed in the file and in
// the database at every opening and at every clean end, so that a database rolled back alone is noticed too. What this
// cannot see (a copy made and written back in place between two openings), the other side's heads show.

// marker is the content of the marker file.
type marker struct {
	Version int      `json:"v"`
	Machine string   `json:"machine"` // hash of the machine ID; empty where there is none
	Inode   uint64   `json:"inode"`
	Birth   int64    `json:"birth"`  // nanoseconds, 0 where the file system does not know
	Folder  uint64   `json:"folder"` // inode of the database's folder
	Tokens  []string `json:"tokens"` // what the database may hold: the current one, and the next while it changes
}

// markerTokenBytes makes tokens that never repeat.
const markerTokenBytes = 16

// readMarker returns the marker of a profile and whether it is still in the place where it was written. A folder
// without one is fresh only if it has no database either; a marker that does not parse counts as moved.
func readMarker(dir string) (m marker, fresh, same bool, err error) {
	path := filepath.Join(dir, markerFile)
	b, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		_, err := os.Stat(filepath.Join(dir, databaseFolder))
		return marker{}, errors.Is(err, fs.ErrNotExist), false, nil
	}
	if err != nil {
		return marker{}, false, false, fmt.Errorf("reading the marker: %w", err)
	}
	if json.Unmarshal(bytes.TrimRight(b, "\n "), &m) != nil || m.Version != 1 {
		return marker{}, false, false, nil
	}
	here, err := markHere(dir, path)
	if err != nil {
		return marker{}, false, false, err
	}
	same = m.Machine == here.Machine && m.Inode == here.Inode && m.Birth == here.Birth && m.Folder == here.Folder
	return m, false, same, nil
}

// accepts says whether the database's token is one that this marker expects.
func (m marker) accepts(token []byte) bool {
	for _, t := range m.Tokens {
		if t == hex.EncodeToString(token) {
			return true
		}
	}
	return false
}

// newToken returns the next token.
func newToken() []byte {
	b := make([]byte, markerTokenBytes)
	rand.Read(b) // never fails, by its documentation
	return b
}

// writeMarker writes the marker for the folder as it is now, the database's folder included, with the tokens the
// database may hold from now on. The file is written in place: a new one would have another inode.
func writeMarker(dir string, tokens ...[]byte) error {
	path := filepath.Join(dir, markerFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("opening the marker: %w", err)
	}
	defer func() { _ = f.Close() }() // synced below
	m, err := markHere(dir, path)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		m.Tokens = append(m.Tokens, hex.EncodeToString(t))
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding the marker: %w", err)
	}
	// Padded to one length, below a disk's sector: a write that is cut leaves the old content or the new, and no tail.
	b = append(b, bytes.Repeat([]byte(" "), max(0, 400-len(b)))...)
	if _, err := f.WriteAt(append(b, '\n'), 0); err != nil {
		return fmt.Errorf("writing the marker: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing the marker: %w", err)
	}
	return nil
}

// markHere describes the marker file and the database's folder as they lie here.
func markHere(dir, path string) (marker, error) {
	inode, birth, err := fileBirth(path)
	if err != nil {
		return marker{}, fmt.Errorf("looking at the marker: %w", err)
	}
	folder, _, err := fileBirth(filepath.Join(dir, databaseFolder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return marker{}, fmt.Errorf("looking at the database: %w", err)
	}
	return marker{Version: 1, Machine: machineHash(), Inode: inode, Birth: birth, Folder: folder}, nil
}

// machineHash names this machine without telling its ID to whoever reads the profile's folder.
func machineHash() string {
	id := machineID()
	if len(id) == 0 {
		return ""
	}
	sum := sha256.Sum256(append([]byte("hima marker\x00"), id...))
	return hex.EncodeToString(sum[:8])
}
