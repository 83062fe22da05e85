package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hima/groups"
	"hima/identity"
	"hima/internal/control"
	"hima/internal/delivery"
	"hima/internal/directory"
	"hima/internal/feed"
	"hima/internal/mailbox"
	"hima/internal/messenger"
	"hima/internal/replica"
	"hima/node"
	"hima/storage"
)

// divergedFile says that the device key of this profile must be replaced before anything is written (R3).
const divergedFile = "diverged"

// errDiverged ends run when a peer showed more of this device's own feed than it holds.
var errDiverged = errors.New("own feed diverged")

// tokenKey is where the database keeps the marker's token.
func tokenKey() []byte { return []byte("a/token") }

// unlocked is everything of a profile that needs its keys. It is made whole by open or not at all.
type unlocked struct {
	dir      string
	log      *slog.Logger
	ending   *ending
	restored bool // the device key was replaced when it was opened

	db        *storage.DB
	node      *node.Node
	directory *directory.Directory
	messenger *messenger.Messenger
	replica   *replica.Replica
	delivery  *delivery.Delivery
	client    *mailbox.Client
	mail      *delivery.Mail
	server    *mailbox.Server // keeps mail of contacts
	groups    *groups.Groups
	pubsub    *node.PubSub // run by the groups

	vault   identity.Vault
	now     func() time.Time
	opened  time.Time
	side    sideOf
	missed  missed
	notes   notes
	changed chan struct{}              // one slot: attend looks again
	tasks   chan func(context.Context) // what runs beside, bounded by maxTasks

	// Owned by attend.
	boxes      []identity.MailboxRef // as last told to the mail
	published  identity.Prekey       // of which it was told that the world knows it
	claimed    map[identity.NetworkID]time.Time
	noSnapshot time.Time // since when mailboxes say that there is none

	lost      lostNames
	refetched refetched

	divergedOnce sync.Once
	diverged     chan struct{} // closed when a peer proved that the own feed is longer elsewhere
}

func newUnlocked(p *profile, v identity.Vault, db *storage.DB) *unlocked {
	return &unlocked{
		dir: p.dir, log: p.log, ending: p.ending, db: db, vault: v, now: p.now, opened: p.now(), diverged: make(chan struct{}),
		notes: notes{wake: make(chan struct{}, 1)}, changed: make(chan struct{}, 1), tasks: make(chan func(context.Context), maxTasks),
		refetched: refetched{changed: make(chan struct{}, 1)},
		claimed:   map[identity.NetworkID]time.Time{},
	}
}

// unlock opens the profile with an open vault and hands it to the loop. The caller holds p.opening. fresh says that the
// vault was made just now, so that there is no feed yet that could be continued by mistake.
func (p *profile) unlock(ctx context.Context, v identity.Vault, password identity.Password, fresh bool) error {
	return p.unlockAfter(ctx, v, password, fresh, nil)
}

// unlockAfter is unlock for a profile whose account has a record of before, which a network knew.
func (p *profile) unlockAfter(ctx context.Context, v identity.Vault, password identity.Password, fresh bool, before []byte) error {
	p.mu.Lock()
	stopping := p.stopping
	p.mu.Unlock()
	if stopping {
		return &control.Error{Code: control.Unavailable, Message: "the node is stopping", Hint: "try again in a moment"}
	}
	what, err := p.copied(fresh)
	if err != nil {
		return err
	}
	db, err := storage.Open(storage.Config{Dir: filepath.Join(p.dir, databaseFolder), Key: v.DatabaseKey.Bytes(), Logger: p.log})
	if err != nil {
		return fmt.Errorf("opening the database: %w", err)
	}
	if what == original && !fresh {
		// The token is the second half of the test for a copy: a database put back alone has an old one.
		known, err := p.tokenFits(db)
		if err != nil {
			return errors.Join(err, db.Close())
		}
		if !known {
			what = copied
		}
	}
	if what != continued && !fresh {
		// A vault put back alone brings a former key back: the database went on under another since.
		back, err := replica.GivenUp(db, v.DeviceKey.ID())
		if err != nil {
			return errors.Join(err, db.Close())
		}
		if back {
			what = continued
		}
	}
	if what != original {
		if v, err = p.replaceKey(ctx, v, password, db, what); err != nil {
			return errors.Join(err, db.Close())
		}
	}
	u := newUnlocked(p, v, db)
	u.restored = what != original
	if err := u.open(ctx, p, before); err != nil {
		return errors.Join(err, u.close())
	}
	p.mu.Lock()
	p.current, p.empty = u, false
	p.mu.Unlock()
	p.opened <- u // never blocks: the loop takes one before another can be opened
	return nil
}

// copyState says whether a profile's folder is the one that its device key was made for.
type copyState int

const (
	original  copyState = iota
	copied              // noticed before anything was written: the database holds what it held when it was copied
	continued           // a peer showed it: the database may have been written since
)

// copied tells whether the folder is a copy of another, by its marker or because a peer showed that it is.
func (p *profile) copied(fresh bool) (copyState, error) {
	if fresh {
		return original, nil
	}
	if _, err := os.Stat(filepath.Join(p.dir, divergedFile)); err == nil {
		return continued, nil
	}
	_, unmarked, same, err := readMarker(p.dir)
	// A profile whose marker and database are both gone had a feed all the same, which others may hold.
	if err != nil || same && !unmarked {
		return original, err
	}
	return copied, nil
}

// mayReplace refuses on a device that cannot certify a new key.
func mayReplace(v identity.Vault) error {
	if _, ok := v.AccountKey(); ok {
		return nil
	}
	return &control.Error{
		Code: control.Conflict, Cause: identity.ErrNoAccountSeed,
		Message: "this profile is a restored copy and this device cannot certify a new key for itself",
		Hint:    "register this device anew with the recovery phrase",
	}
}

// replaceKey gives a copied profile a new device key, in the vault first: from then on nobody writes under the old one. Before
// it is gone it signs what nobody has yet, if that is what it was when the copy was made (R3). A crash in between
// repeats both.
func (p *profile) replaceKey(ctx context.Context, v identity.Vault, password identity.Password, db *storage.DB, what copyState) (identity.Vault, error) {
	if err := mayReplace(v); err != nil {
		return v, err
	}
	if what == copied {
		own, err := ownDevices(db, v)
		if err != nil {
			return v, err
		}
		if err := replica.Seal(ctx, db, v.Account, v.DeviceKey, own); err != nil {
			return v, err
		}
	}
	next, err := v.RotateDevice(p.now())
	if err != nil {
		return v, err
	}
	if err := writeVault(p.dir, next, password, p.config.WorkFactor); err != nil {
		return v, err
	}
	if err := os.Remove(filepath.Join(p.dir, divergedFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return v, fmt.Errorf("forgetting the divergence: %w", err)
	}
	p.log.Warn("this profile is a restored copy: it goes on under a new device key", "device", next.DeviceKey.ID())
	return next, nil
}

// ownDevices lists the devices that the account of a profile has and had, as far as is known here, with the former keys of this one.
func ownDevices(db *storage.DB, v identity.Vault) ([]identity.DeviceID, error) {
	d, err := directory.New(directory.Config{DB: db, Certificate: v.Certificate})
	if err != nil {
		return nil, err
	}
	record, _ := d.Record(v.Account)
	return slices.Concat(v.Former, d.Devices(v.Account), record.Revoked), nil
}

// tokenFits compares the token of the database with the marker's.
func (p *profile) tokenFits(db *storage.DB) (bool, error) {
	m, _, _, err := readMarker(p.dir)
	if err != nil {
		return false, err
	}
	token, err := readToken(db)
	if err != nil {
		return false, err
	}
	return m.accepts(token), nil
}

func readToken(db *storage.DB) (token []byte, err error) {
	err = db.View(func(tx *storage.Tx) error {
		token, err = tx.Get(tokenKey())
		if errors.Is(err, storage.ErrNotFound) {
			return nil
		}
		return err
	})
	return token, err
}

// changeToken replaces the token in marker and database; at every moment the marker knows the one in the database.
func changeToken(ctx context.Context, dir string, db *storage.DB) error {
	old, err := readToken(db)
	if err != nil {
		return err
	}
	next := newToken()
	if err := writeMarker(dir, old, next); err != nil {
		return err
	}
	if err := db.Update(ctx, func(tx *storage.Tx) error { return tx.Set(tokenKey(), next) }); err != nil {
		return fmt.Errorf("changing the marker's token: %w", err)
	}
	return writeMarker(dir, next)
}

// open makes the parts from the bottom up and wires them. before is a record of the account that is to be continued, or nil.
func (u *unlocked) open(ctx context.Context, p *profile, before []byte) error {
	if err := changeToken(ctx, p.dir, u.db); err != nil {
		return err
	}
	v := u.vault
	var err error
	if u.node, err = openNode(p, v.DeviceKey); err != nil {
		return err
	}
	u.messenger, err = messenger.New(messenger.Config{
		DB: u.db, Account: v.Account, Device: v.DeviceKey.ID(), Username: v.Username, Former: v.Former,
		Addrs: u.node.Addrs, Diverged: u.onDiverged, Now: p.now, Logger: p.log,
	})
	if err != nil {
		return err
	}
	u.directory, err = directory.New(directory.Config{
		DB: u.db, Node: u.node, Certificate: v.Certificate, Profile: u.messenger.LanProfile, Keep: u.messenger.Keeps,
		Key: v.DeviceKey, AccountKey: u.accountKey, OnName: u.onName, OnNetwork: u.onNetwork, OnOwnRecord: u.onOwnRecord, OnRecord: u.onRecord,
		OnNearby: u.onNearby,
		Agent:    agent(), Logger: p.log, Now: p.now,
	})
	if err != nil {
		return err
	}
	if len(before) > 0 {
		if _, err := u.directory.Admit(ctx, before); err != nil {
			return err
		}
	}
	if err := u.publishSelf(ctx, p.now()); err != nil {
		return err
	}
	if err := u.openGroups(p); err != nil {
		return err
	}
	if err := u.openRoads(p); err != nil {
		return err
	}
	u.bindGroups()
	u.messenger.Bind(messenger.Parts{
		Feeds: u.replica, Roads: u.delivery, People: people{u}, Networks: onNetworks{u}, Mail: mailing{u},
		Groups: u.groups, FindGroups: u.findGroups,
		PolicyChanged: u.touch, GrantsChanged: u.touch, Befriended: u.onBefriended,
	})
	if err := u.messenger.Recover(ctx); err != nil {
		return err
	}
	if u.restored {
		return u.messenger.Warn(ctx, "restored_copy")
	}
	return nil
}

// openRoads makes what brings entries: sessions, mail, and the table that says which and when.
func (u *unlocked) openRoads(p *profile) error {
	v := u.vault
	var err error
	u.replica, err = replica.New(replica.Config{
		DB: u.db, Node: u.node, Account: v.Account, Key: v.DeviceKey, Certificate: v.Certificate, Former: v.Former,
		Records: u.directory, Members: u.messenger, Gate: u.messenger, Hooks: u.messenger, Side: &u.side,
		Keys: u.groups, OnStored: u.groups.OnStored, OnReplaced: u.messenger.Replaced, OnDropped: u.messenger.Dropped,
		AfterReplaced: u.groups.Freed, Logger: p.log, Now: p.now, Agent: agent(),
	})
	if err != nil {
		return err
	}
	if err := u.openMail(p, v); err != nil {
		return err
	}
	u.delivery, err = delivery.New(delivery.Config{
		DB: u.db, Sessions: u.replica, Self: v.DeviceKey.ID(), Events: u.node.Subscribe, Contacts: u.contactDevices,
		OnFailed: u.mail.Failed, Locate: u.locate, Addr: u.firstAddr, Release: u.replica.Release, Logger: p.log, Now: p.now,
	})
	return err
}

func agent() string { return "hima/" + control.Release }

func openNode(p *profile, key identity.DeviceKey) (*node.Node, error) {
	s := p.config.Settings
	port := s.Port
	if port == 0 {
		var err error
		if port, err = profilePort(p.dir); err != nil {
			return nil, err
		}
	}
	n, err := node.New(node.Config{
		Key: key, Listen: fixedPort(s.Listen, port), Announce: s.Announce, Port: port, MDNS: s.multicast(), Internet: true,
		Version: control.Release, Logger: p.log,
	})
	if errors.Is(err, node.ErrPortInUse) {
		return nil, &control.Error{
			Code: control.Conflict, Cause: err, Message: "another program listens on the port of this node: " + err.Error(),
			Hint: "choose another with `port` in config.toml, or end the other program",
		}
	}
	return n, err
}

// fixedPort puts the profile's own port where a configured address leaves it open: a port that changes at every start
// would make everybody's address book worthless.
func fixedPort(listen []string, port int) []string {
	out := slices.Clone(listen)
	for i, a := range out {
		for _, proto := range []string{"/tcp/", "/udp/"} {
			if head, tail, ok := strings.Cut(a, proto+"0"); ok && (tail == "" || tail[0] == '/') {
				out[i] = head + proto + strconv.Itoa(port) + tail
			}
		}
	}
	return out
}

// onDiverged is called by the messenger on a session's goroutine.
func (u *unlocked) onDiverged(id feed.FeedID) {
	u.divergedOnce.Do(func() {
		u.log.Warn("a contact holds entries of this device that it does not have itself", "conversation", id.Conversation)
		if err := writeFileAtomic(filepath.Join(u.dir, divergedFile), nil); err != nil {
			u.log.Error("noting the divergence", "err", err)
		}
		close(u.diverged)
	})
}

// run runs the parts until ctx ends, one of them fails, or the own feed diverged.
func (u *unlocked) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for name, part := range map[string]func(context.Context) error{
		"database": u.db.RunMaintenance, "network": u.node.Run, "directory": u.directory.Run, "sync": u.replica.Run,
		"messenger": u.messenger.Run, "delivery": u.delivery.Run, "mail": u.mail.Run, "mailbox": u.server.Run, "groups": u.groups.Run,
		"mailboxes in use": u.attend, "events of networks": u.runNotes, "tasks": u.runAllTasks,
	} {
		g.Go(func() error {
			defer u.ending.enter(name)()
			if err := part(ctx); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("running the %s: %w", name, err)
			}
			return nil
		})
	}
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-u.diverged:
			return errDiverged
		}
	})
	return g.Wait()
}

// close ends what open began, from the top down. The token changes once more, so that a copy of the folder made while
// the node ran is told from the folder as it was left.
func (u *unlocked) close() error {
	var err error
	if u.client != nil {
		closed := u.ending.enter("closing the client of mailboxes")
		err = u.client.Close()
		closed()
	}
	if u.node != nil {
		closed := u.ending.enter("closing the network")
		err = errors.Join(err, u.node.Close())
		closed()
	}
	defer u.ending.enter("closing the database")()
	if u.delivery != nil { // everything was opened
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err = errors.Join(err, changeToken(ctx, u.dir, u.db))
	}
	return errors.Join(err, u.db.Close())
}

// contactDevices lists the devices that are worth a standing session.
func (u *unlocked) contactDevices() []identity.DeviceID {
	var out []identity.DeviceID
	for _, a := range u.messenger.PeerAccounts() {
		out = append(out, u.directory.Devices(a)...)
	}
	return out
}

// onNearby hears who is on the LAN: it may be a device of a contact that nobody knew.
func (u *unlocked) onNearby(p directory.Person) {
	u.background(func(context.Context) {
		if u.messenger.Keeps(p.Account) {
			u.delivery.Refresh()
			u.delivery.Nudge(p.Device)
		}
	})
}

// onBefriended tells a new contact where this device takes its mail.
func (u *unlocked) onBefriended(a identity.AccountID) {
	u.background(func(context.Context) {
		for _, d := range u.directory.Devices(a) {
			u.replica.PushOffer(d)
		}
	})
}

// firstAddr is where a device is connected, or would be dialled.
func (u *unlocked) firstAddr(d identity.DeviceID) string {
	if s, ok := u.replica.Session(d); ok {
		return s.Addr
	}
	if known := u.node.Known(d); len(known) > 0 {
		return known[0]
	}
	return ""
}

// people is what the messenger sees of directory and node.
type people struct{ u *unlocked }

func (p people) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	return p.u.directory.Record(a)
}

func (p people) Devices(a identity.AccountID) []identity.DeviceID { return p.u.directory.Devices(a) }

func (p people) LastSeen(d identity.DeviceID) time.Time { return p.u.directory.LastSeen(d) }

func (p people) Nearby() ([]messenger.Person, bool) {
	var out []messenger.Person
	for _, n := range p.u.directory.Nearby() {
		out = append(out, messenger.Person{
			Account: n.Account, Device: n.Device, Username: n.Username, Nickname: n.Nickname, Address: n.Address, Seen: n.Seen,
		})
	}
	return out, p.u.node.Multicast()
}

func (p people) Hint(a identity.AccountID, d identity.DeviceID, addrs []string) {
	p.u.directory.Hint(a, d, addrs)
	p.u.node.Remember(d, addrs)
}
