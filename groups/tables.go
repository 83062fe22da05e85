package groups

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// The keys of this package. Numbers are big endian.
const (
	keyGroup   = "g/r/" // group 32: group row
	keyCount   = "g/v/" // group 32: how many acts are kept, which is also the version of the roster
	keyAct     = "g/a/" // group 32, clock 8, entry 32: act, see appendAct
	keyMember  = "g/m/" // account 32, group 32: empty; whom a group is shared with
	keyEpoch   = "g/e/" // group 32, epoch 32: chat entries under it 8
	keyFirst   = "g/w/" // group 32, device 32, epoch 32: first chat entry of a feed under an epoch 8
	keyOwn     = "g/h/" // group 32: up to where the own chat feed is in the two above 8
	keyKey     = "g/k/" // group 32, epoch 32: key 32
	keyEarly   = "g/q/" // group 32, epoch 32: time 8, key 32 of an epoch whose act is not there yet
	keyInvite  = "g/i/" // direction 1, group 32, account 32: invitation row
	keyApply   = "g/p/" // group 32, account 32: application row
	keyVerdict = "g/u/" // account 32, group 32, applicant 32, on an own application its time 8: verdict row, of somebody on an application, that cannot be judged yet
	keyLink    = "g/l/" // group 32, token 16: link row
	keyUsed    = "g/j/" // group 32, token 16, account 32: empty; a use of a link that was counted
	keyFork    = "g/f/" // group 32, device 32: from which act on a control feed has two branches 8
	keyBranch  = "g/y/" // group 32, entry 32: payer 32, header of an entry where its feed has two branches
	keyProof   = "g/o/" // group 32, device 32: proof that a control feed has two branches, for those headers
	keyNick    = "g/n/" // group 32, account 32: the name somebody had who is not in any more
)

// The directions of invitations.
const (
	incoming byte = 'i'
	outgoing byte = 'o'
)

func key(prefix string, parts ...[]byte) []byte {
	b := []byte(prefix)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// readNumber reads a counter; 0 if there is none.
func readNumber(tx *storage.Tx, k []byte) (uint64, error) {
	b, err := tx.Get(k)
	if errors.Is(err, storage.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("reading a counter: %w", errRow)
	}
	return binary.BigEndian.Uint64(b), nil
}

// groupRow is what is known of a group besides its acts.
type groupRow struct {
	State       State                `json:"s"`
	Name        string               `json:"n,omitempty"` // claimed, while we are not in
	Description string               `json:"d,omitempty"`
	Size        int                  `json:"z,omitempty"`
	Join        string               `json:"j,omitempty"`
	Asks        []contactRow         `json:"a,omitempty"` // who can be asked while we are not in
	Ours        bool                 `json:"u,omitempty"` // this device answered or applied, and not another own one
	ReadOnly    bool                 `json:"o,omitempty"`
	Began       int64                `json:"b"`           // when we heard of it first, ms
	Joined      int64                `json:"t,omitempty"` // ms of the act that let us in
	Went        State                `json:"w,omitempty"` // left or removed, once we were in and as long as we are not again
	Applied     *applicationRow      `json:"p,omitempty"` // our own application, the last
	Told        []toldRow            `json:"k,omitempty"` // whom it and those before it were said to, see told.go
	Answers     []answerRow          `json:"q,omitempty"` // who of them said no
	Floods      []identity.AccountID `json:"f,omitempty"`
	Restored    bool                 `json:"l,omitempty"` // a snapshot says that we are in, see Restore
}

// contactRow is a Contact on disk.
type contactRow struct {
	Account identity.AccountID `json:"a"`
	Devices []deviceRow        `json:"d,omitempty"`
}

type deviceRow struct {
	Device identity.DeviceID `json:"d"`
	Addrs  []string          `json:"a,omitempty"`
}

func packContacts(in []Contact) []contactRow {
	var out []contactRow
	for _, c := range in[:min(len(in), identity.MaxGroupContacts)] {
		row := contactRow{Account: c.Account}
		for _, d := range c.Devices {
			row.Devices = append(row.Devices, deviceRow{d.Device, d.Addrs})
		}
		out = append(out, row)
	}
	return out
}

func unpackContacts(in []contactRow) []Contact {
	var out []Contact
	for _, c := range in {
		x := Contact{Account: c.Account}
		for _, d := range c.Devices {
			x.Devices = append(x.Devices, identity.InviteDevice{Device: d.Device, Addrs: d.Addrs})
		}
		out = append(out, x)
	}
	return out
}

// invitationRow is an invitation; the key says which way and between whom.
type invitationRow struct {
	Name        string       `json:"n,omitempty"`
	Description string       `json:"d,omitempty"`
	Size        int          `json:"z,omitempty"`
	Asks        []contactRow `json:"a,omitempty"`
	Networks    []string     `json:"w,omitempty"` // links
	Time        int64        `json:"t"`
	Expires     int64        `json:"e"`
	State       string       `json:"s"`
}

// applicationRow is an application: somebody's, or ours in a groupRow.
type applicationRow struct {
	Consent []byte               `json:"c,omitempty"`
	Message string               `json:"m,omitempty"`
	To      []identity.AccountID `json:"a,omitempty"` // whom we asked, as an earlier build kept it
	Time    int64                `json:"t"`
	Expires int64                `json:"e"`
	State   string               `json:"s"`
	Reason  string               `json:"r,omitempty"`
	By      identity.AccountID   `json:"b,omitzero"`  // who turned it down
	From    []identity.AccountID `json:"f,omitempty"` // which admins handed it on
	ByLink  bool                 `json:"l,omitempty"`
	Direct  bool                 `json:"d,omitempty"` // the applicant said it to us
	Name    string               `json:"n,omitempty"` // of the group
	Alone   bool                 `json:"o,omitempty"` // it was not handed on: too many were
}

// from notes who handed an application on; false: that is known, or enough are.
func (r *applicationRow) from(admin identity.AccountID) bool {
	if len(r.From) >= maxHandedOn || slices.Contains(r.From, admin) {
		return false
	}
	r.From = append(r.From, admin)
	return true
}

// linkRow is a link of ours.
type linkRow struct {
	Text    string `json:"x"` // empty: another device of ours made it
	Created int64  `json:"t"`
	Expires int64  `json:"e,omitempty"`
	Uses    int    `json:"u,omitempty"`
	Used    int    `json:"d,omitempty"`
	Revoked bool   `json:"r,omitempty"`
}

// getRow reads a row of JSON; false if there is none.
func getRow[T any](tx *storage.Tx, k []byte) (row T, ok bool, err error) {
	b, err := tx.Get(k)
	if errors.Is(err, storage.ErrNotFound) {
		return row, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &row)
	}
	if err != nil {
		return row, false, fmt.Errorf("reading a row: %w", err)
	}
	return row, true, nil
}

// states remembers the state that the row of a group holds, by the bytes of the row: every run that comes in asks for it, and
// to decode all of the row took more than a third of what storing a message takes.
type states struct {
	mu sync.Mutex
	of map[ID]decodedState // guarded by mu; at most maxStates
}

const maxStates = 1024

type decodedState struct {
	row   []byte
	state State
}

// state returns the state of a group; false if it is not known.
func (g *Groups) state(tx *storage.Tx, conv ID) (state State, known bool, err error) {
	k := groupKey(conv)
	b, err := tx.Get(k)
	if errors.Is(err, storage.ErrNotFound) {
		return state, false, nil
	}
	if err != nil {
		return state, false, err
	}
	g.states.mu.Lock()
	d, ok := g.states.of[conv]
	g.states.mu.Unlock()
	if ok && bytes.Equal(d.row, b) {
		return d.state, true, nil
	}
	row, known, err := getRow[groupRow](tx, k)
	if !known || err != nil {
		return state, known, err
	}
	g.states.mu.Lock()
	defer g.states.mu.Unlock()
	putBounded(&g.states.of, conv, decodedState{bytes.Clone(b), row.State}, maxStates)
	return row.State, true, nil
}

func putRow[T any](tx *storage.Tx, k []byte, row T) error {
	b, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("writing a row: %w", err)
	}
	return tx.Set(k, b)
}

// eachRow calls f for the rows under a prefix, with what follows it in their keys.
func eachRow[T any](tx *storage.Tx, prefix []byte, f func(rest []byte, row T) (bool, error)) error {
	return tx.Scan(storage.ScanOptions{Prefix: prefix}, func(k, b []byte) (bool, error) {
		var row T
		if err := json.Unmarshal(b, &row); err != nil {
			return false, fmt.Errorf("reading a row: %w", err)
		}
		return f(k[len(prefix):], row)
	})
}

func groupKey(conv ID) []byte { return key(keyGroup, conv[:]) }

func memberKey(account identity.AccountID, conv ID) []byte {
	return key(keyMember, account[:], conv[:])
}

func actKey(conv ID, clock uint64, id feed.EntryID) []byte {
	return key(keyAct, conv[:], be64(clock), id[:])
}

func inviteKey(direction byte, conv ID, account identity.AccountID) []byte {
	return key(keyInvite, []byte{direction}, conv[:], account[:])
}

func applyKey(conv ID, account identity.AccountID) []byte { return key(keyApply, conv[:], account[:]) }

func atMS(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
