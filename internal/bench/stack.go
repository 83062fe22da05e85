package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hima/identity"
	"hima/internal/directory"
	"hima/internal/feed"
	"hima/internal/messenger"
	"hima/internal/replica"
	"hima/node"
	"hima/storage"
)

// stack is the parts of a running node, put together as the daemon does but for the retry table: benchmarks open their
// sessions themselves.
type stack struct {
	account   identity.AccountID
	device    identity.DeviceID
	db        *storage.DB
	node      *node.Node
	directory *directory.Directory
	messenger *messenger.Messenger
	replica   *replica.Replica

	cancel context.CancelFunc
	group  *errgroup.Group

	mu    sync.Mutex
	onAck func(replica.Ack)
}

// openStack makes or opens a node named name under dir, "" for one in memory, and runs it.
func openStack(dir, name string) (s *stack, err error) {
	v, err := vaultFor(dir, name)
	if err != nil {
		return nil, err
	}
	s = &stack{account: v.Account, device: v.DeviceKey.ID()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	config := storage.Config{}
	if dir != "" {
		config = storage.Config{Dir: filepath.Join(dir, name), Key: v.DatabaseKey.Bytes()}
	}
	if s.db, err = storage.Open(config); err != nil {
		return nil, err
	}
	if s.node, err = node.New(node.Config{Key: v.DeviceKey, Listen: []string{"/ip4/127.0.0.1/tcp/0"}}); err != nil {
		return nil, err
	}
	s.messenger, err = messenger.New(messenger.Config{DB: s.db, Account: v.Account, Device: s.device, Username: name, Addrs: s.node.Addrs})
	if err != nil {
		return nil, err
	}
	s.directory, err = directory.New(directory.Config{
		DB: s.db, Node: s.node, Certificate: v.Certificate, Profile: s.messenger.LanProfile, Keep: s.messenger.Keeps,
	})
	if err != nil {
		return nil, err
	}
	if err := s.publish(v); err != nil {
		return nil, err
	}
	s.replica, err = replica.New(replica.Config{
		DB: s.db, Node: s.node, Account: v.Account, Key: v.DeviceKey, Certificate: v.Certificate,
		Records: s.directory, Members: s.messenger, Gate: s.messenger, Hooks: s.messenger, OnAck: s.acked,
	})
	if err != nil {
		return nil, err
	}
	s.messenger.Bind(messenger.Parts{Feeds: s.replica, People: people{s}})
	s.start()
	return s, nil
}

// start runs the parts until close.
func (s *stack) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.group, ctx = errgroup.WithContext(ctx)
	for _, part := range []func(context.Context) error{
		s.db.RunMaintenance, s.node.Run, s.directory.Run, s.replica.Run, s.messenger.Run,
	} {
		s.group.Go(func() error {
			if err := part(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		})
	}
}

// open opens a session. On a busy machine the replica may not have begun to run.
func (s *stack) open(ctx context.Context, device identity.DeviceID) (err error) {
	for range 100 {
		if err = s.replica.Open(ctx, device); !errors.Is(err, replica.ErrClosed) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

func (s *stack) close() error {
	var errs []error
	if s.cancel != nil {
		s.cancel()
		errs = append(errs, s.group.Wait())
	}
	if s.node != nil {
		errs = append(errs, s.node.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	return errors.Join(errs...)
}

func (s *stack) publish(v identity.Vault) error {
	if _, known := s.directory.Record(v.Account); known {
		return nil
	}
	key, ok := v.AccountKey()
	if !ok {
		return errors.New("the vault has no account key")
	}
	record, err := identity.NewAccountRecord(key, identity.RecordConfig{Now: time.Now(), Devices: []identity.Certificate{v.Certificate}})
	if err != nil {
		return err
	}
	return s.directory.SetOwn(context.Background(), record)
}

func (s *stack) acked(a replica.Ack) {
	s.mu.Lock()
	f := s.onAck
	s.mu.Unlock()
	if f != nil {
		f(a)
	}
}

// watchAcks has f called for every acknowledgement that arrives.
func (s *stack) watchAcks(f func(replica.Ack)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onAck = f
}

// chat is the own chat feed of the conversation with an account.
func (s *stack) chat(with identity.AccountID) feed.FeedID {
	return s.replica.OwnFeed(feed.DirectConversation(s.account, with), feed.Chat)
}

// vaultFor reads the vault of a benchmark node, or makes one. It is no secret.
func vaultFor(dir, name string) (identity.Vault, error) {
	if dir == "" {
		v, _, err := identity.NewVault(name, time.Now())
		return v, err
	}
	file, keyFile := filepath.Join(dir, name+".vault"), filepath.Join(dir, name+".key")
	sealed, err := os.ReadFile(file)
	if err == nil {
		key, err := os.ReadFile(keyFile)
		if err != nil {
			return identity.Vault{}, err
		}
		return identity.OpenVaultKey(sealed, key)
	}
	v, _, err := identity.NewVault(name, time.Now())
	if err != nil {
		return v, err
	}
	sealed, key, err := identity.SealVaultKey(v)
	if err != nil {
		return v, err
	}
	return v, errors.Join(os.WriteFile(file, sealed, 0o600), os.WriteFile(keyFile, key, 0o600))
}

// people is what the messenger sees of directory and node.
type people struct{ s *stack }

func (p people) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	return p.s.directory.Record(a)
}

func (p people) Devices(a identity.AccountID) []identity.DeviceID { return p.s.directory.Devices(a) }

func (p people) LastSeen(d identity.DeviceID) time.Time { return p.s.directory.LastSeen(d) }
func (p people) Nearby() ([]messenger.Person, bool)     { return nil, false }

func (p people) Hint(a identity.AccountID, d identity.DeviceID, addrs []string) {
	p.s.directory.Hint(a, d, addrs)
	p.s.node.Remember(d, addrs)
}

// textSize is the length of a benchmark's messages: a long sentence.
const textSize = 120

// text is the i-th message of a benchmark: its number and letters that differ from message to message, so that nothing
// can be saved by sameness. It must cost next to nothing.
func text(i int) string {
	b := make([]byte, 0, textSize)
	for digit := 10_000_000; digit > 0; digit /= 10 {
		b = append(b, byte('0'+i/digit%10))
	}
	b = append(b, ' ')
	for x := uint64(i)*0x9e3779b97f4a7c15 + 1; len(b) < textSize; x ^= x << 17 {
		x ^= x << 13
		x ^= x >> 7
		for k := 0; k < 64 && len(b) < textSize; k += 5 {
			b = append(b, "abcdefghijklmnopqrstuvwxyz012345"[x>>k&31])
		}
	}
	return string(b)
}
