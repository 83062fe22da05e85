package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/metrics"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/control/server"
	"hima/internal/messenger"
	"hima/internal/text"
)

// profile is the server's Backend.
var _ server.Backend = (*profile)(nil)

// Status implements server.Backend.
func (p *profile) Status(ctx context.Context) (*pb.StatusResponse, error) {
	p.mu.Lock()
	u, empty := p.current, p.empty
	p.mu.Unlock()
	s := &pb.StatusResponse{
		Version: control.Release, Commit: control.Commit(), Profile: p.config.Profile, State: "locked", Pid: int32(os.Getpid()),
		UptimeMs: p.now().Sub(p.start).Milliseconds(), MemoryBytes: memoryInUse(), Protocols: Protocols(),
	}
	if empty {
		s.State = "empty"
	}
	if u == nil {
		return s, nil
	}
	s.State, s.Restored = "unlocked", u.restored
	if err := u.fillStatus(ctx, s); err != nil {
		return nil, err
	}
	if !p.HasPassword() {
		s.Warnings = append(s.Warnings, "no_password")
	}
	if p.config.Settings.multicast() && !u.node.Multicast() {
		s.Warnings = append(s.Warnings, "no_multicast")
	}
	if u.restored {
		s.Warnings = append(s.Warnings, "restored_copy")
	}
	return s, nil
}

// skewWorthTelling is from when on a clock that differs from a contact's is a warning.
const skewWorthTelling = 5 * 60 * 1000 // milliseconds

func (u *unlocked) fillStatus(ctx context.Context, s *pb.StatusResponse) error {
	me, err := u.messenger.Profile(ctx)
	if err != nil {
		return err
	}
	counts, err := u.messenger.Counts(ctx)
	if err != nil {
		return err
	}
	owed, err := u.replica.Owed()
	if err != nil {
		return err
	}
	s.Account, s.Device, s.Username = me.Account.String(), me.Device.String(), me.Username
	s.Addresses = u.node.Addrs()
	s.PendingMessages, s.Unread, s.Requests = int32(counts.Pending), int32(counts.Unread), int32(counts.Requests)
	s.LastEvent, s.WaitingDevices = counts.LastEvent, int32(len(owed))
	s.Networks = u.networks()
	s.DatabaseBytes = folderSize(filepath.Join(u.dir, databaseFolder))
	limited := map[identity.DeviceID]bool{}
	for _, c := range u.node.Peers() {
		limited[c.Device] = c.Limited
	}
	skewed := false
	for _, i := range u.replica.Sessions() {
		name, err := u.messenger.NameOf(ctx, i.Account)
		if err != nil {
			return err
		}
		skew := i.Skew.Milliseconds()
		skewed = skewed || skew > skewWorthTelling || skew < -skewWorthTelling
		s.Peers = append(s.Peers, &pb.Peer{
			Account: i.Account.String(), Device: i.Device.String(), Name: name, Address: i.Addr, Transport: i.Transport,
			SinceMs: i.Since.UnixMilli(), RttUs: i.RTT.Microseconds(), ClockSkewMs: skew,
			Limited: limited[i.Device] && i.Transport == "relay",
		})
	}
	if skewed {
		s.Warnings = append(s.Warnings, "clock_skew")
	}
	return nil
}

// Register implements server.Backend.
func (p *profile) Register(ctx context.Context, in *pb.RegisterRequest) (*pb.RegisterResponse, error) {
	p.opening.Lock()
	defer p.opening.Unlock()
	if _, err := readVault(p.dir); !errors.Is(err, ErrNoProfile) {
		return nil, &control.Error{Code: control.Exists, Message: "the username " + p.config.Profile + " is registered here already", Hint: "log in, or choose another username"}
	}
	name, err := text.Username(in.GetUsername())
	if err != nil {
		return nil, &control.Error{Code: control.Invalid, Message: err.Error(), Hint: "choose 1 to 32 letters and digits of one script", Cause: err}
	}
	if name != p.config.Profile {
		return nil, &control.Error{Code: control.Invalid, Message: fmt.Sprintf("this node serves the profile %s and cannot register %s", p.config.Profile, name)}
	}
	password, err := newPassword(in.GetPassword(), in.GetNoPassword())
	if err != nil {
		return nil, err
	}
	v, phrase, err := p.newVault(name, in.GetPhrase())
	if err != nil {
		return nil, err
	}
	var door entrance
	if in.GetNetwork() != "" {
		// A name that somebody else has is refused before anything is made.
		if door, err = p.approach(ctx, in.GetNetwork(), name, v.Account, in.GetPhrase() != ""); err != nil {
			return nil, err
		}
	}
	if err := writeVault(p.dir, v, password, p.config.WorkFactor); err != nil {
		return nil, errors.Join(err, p.undoRegister())
	}
	if err := p.unlockAfter(ctx, v, password, true, door.record); err != nil {
		return nil, errors.Join(err, p.undoRegister())
	}
	p.setState(false, password != "")
	out, err := p.welcome(ctx, in, door)
	if err != nil {
		return nil, err
	}
	out.Phrase = phrase
	return out, rememberProfile(p.config.Home, p.config.Profile)
}

// welcome does with a new profile what was asked for besides: restore, join, describe.
func (p *profile) welcome(ctx context.Context, in *pb.RegisterRequest, door entrance) (*pb.RegisterResponse, error) {
	p.mu.Lock()
	u := p.current
	p.mu.Unlock()
	if u == nil {
		return nil, &control.Error{Code: control.Unavailable, Message: "the node is stopping", Hint: "the profile is there; log in when it runs again"}
	}
	if in.GetPhrase() != "" {
		if err := u.messenger.Restored(ctx); err != nil {
			return nil, err
		}
	}
	var network *pb.Network
	pending := false
	if in.GetNetwork() != "" {
		s, late, err := u.enter(ctx, door, u.vault.Username)
		if err != nil {
			return nil, err
		}
		network, pending = u.network(s), late
	}
	out, err := p.describe(ctx, in)
	if err != nil {
		return nil, err
	}
	out.Network = network
	if pending {
		out.Warnings = append(out.Warnings, "name_pending")
	}
	return out, nil
}

func (p *profile) newVault(name, phrase string) (identity.Vault, string, error) {
	if phrase == "" {
		return identity.NewVault(name, p.now())
	}
	v, err := identity.RestoreVault(phrase, name, p.now())
	if err != nil {
		return v, "", &control.Error{Code: control.Invalid, Message: "the recovery phrase is not right", Hint: "it has 24 English words; check their order and spelling", Cause: err}
	}
	return v, "", nil
}

// newPassword checks what is to become the password. An empty one must be meant.
func newPassword(password string, none bool) (identity.Password, error) {
	switch {
	case none && password != "":
		return "", &control.Error{Code: control.Invalid, Message: "a password and no password were asked for at once"}
	case !none && password == "":
		return "", &control.Error{Code: control.Invalid, Message: "the password is empty", Hint: "give one, or say that there shall be none"}
	case len(password) > maxPassword:
		return "", &control.Error{Code: control.TooLarge, Message: fmt.Sprintf("the password is longer than %d bytes", maxPassword)}
	}
	return identity.Password(password), nil
}

// maxPassword bounds a password, in bytes; a book would only slow its owner.
const maxPassword = 1024

// undoRegister removes what a failed register made, so that it can be tried again.
func (p *profile) undoRegister() error {
	var err error
	for _, name := range []string{vaultFile, keyFile, markerFile} {
		if e := os.Remove(filepath.Join(p.dir, name)); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("undoing the registration: %w", e))
		}
	}
	if e := os.RemoveAll(filepath.Join(p.dir, databaseFolder)); e != nil {
		err = errors.Join(err, fmt.Errorf("undoing the registration: %w", e))
	}
	p.setState(true, false)
	return err
}

// describe writes what the owner said of themselves and answers with the whole profile.
func (p *profile) describe(ctx context.Context, in *pb.RegisterRequest) (*pb.RegisterResponse, error) {
	m, err := p.Messenger()
	if err != nil {
		return nil, err
	}
	if in.GetNickname() != "" || in.GetContactField() != "" {
		change := messenger.ProfileChange{Nickname: &in.Nickname, ContactField: &in.ContactField}
		if _, err := m.SetProfile(ctx, change); err != nil {
			return nil, err
		}
	}
	shown, err := p.profileOf(ctx, m)
	if err != nil {
		return nil, err
	}
	out := &pb.RegisterResponse{Profile: shown, Invite: shown.GetInvite()}
	if !shown.GetHasPassword() {
		out.Warnings = []string{"no_password"}
	}
	return out, nil
}

func (p *profile) profileOf(ctx context.Context, m *messenger.Messenger) (*pb.Profile, error) {
	me, err := m.Profile(ctx)
	if err != nil {
		return nil, err
	}
	link, err := server.LiveInvite(ctx, m)
	if err != nil {
		return nil, err
	}
	return server.Profile(me, link, p.HasPassword()), nil
}

// Login implements server.Backend.
func (p *profile) Login(ctx context.Context, in *pb.LoginRequest) (*pb.LoginResponse, error) {
	p.opening.Lock()
	defer p.opening.Unlock()
	sealed, err := readVault(p.dir)
	if errors.Is(err, ErrNoProfile) {
		return nil, noProfile(p.config.Profile)
	}
	if err != nil {
		return nil, err
	}
	password := identity.Password(in.GetPassword())
	v, err := sealed.open(password)
	if err != nil {
		return nil, err
	}
	if m, _ := p.Messenger(); m == nil {
		if err := p.unlock(ctx, v, password, false); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(filepath.Join(p.dir, logoutFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("forgetting the logout: %w", err)
	}
	if err := rememberProfile(p.config.Home, p.config.Profile); err != nil {
		return nil, err
	}
	m, err := p.Messenger()
	if err != nil {
		return nil, err
	}
	shown, err := p.profileOf(ctx, m)
	return &pb.LoginResponse{Profile: shown}, err
}

func noProfile(name string) error {
	return &control.Error{Code: control.NoProfile, Message: "nobody is registered here as " + name, Hint: "register first"}
}

// Stop implements server.Backend.
func (p *profile) Stop(_ context.Context, logout bool) error {
	if logout {
		if err := writeFileAtomic(filepath.Join(p.dir, logoutFile), nil); err != nil {
			return err
		}
	}
	p.stop()
	return nil
}

// ChangePassword implements server.Backend. It works locked and unlocked, and touches only the vault.
func (p *profile) ChangePassword(_ context.Context, in *pb.ChangePasswordRequest) error {
	next, err := newPassword(in.GetNewPassword(), in.GetNoPassword())
	if err != nil {
		return err
	}
	p.opening.Lock()
	defer p.opening.Unlock()
	sealed, err := readVault(p.dir)
	if errors.Is(err, ErrNoProfile) {
		return noProfile(p.config.Profile)
	}
	if err != nil {
		return err
	}
	v, err := sealed.open(identity.Password(in.GetOldPassword()))
	if err != nil {
		return err
	}
	if err := writeVault(p.dir, v, next, p.config.WorkFactor); err != nil {
		return err
	}
	p.mu.Lock()
	p.password = next != ""
	p.mu.Unlock()
	return nil
}

// HasPassword implements server.Backend.
func (p *profile) HasPassword() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.password
}

// Messenger implements server.Backend.
func (p *profile) Messenger() (*messenger.Messenger, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.current != nil:
		return p.current.messenger, nil
	case p.empty:
		return nil, noProfile(p.config.Profile)
	}
	return nil, &control.Error{Code: control.Locked, Message: "the profile " + p.config.Profile + " is locked", Hint: "log in first"}
}

// memoryInUse is what the Go runtime holds of the system's memory.
func memoryInUse() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() - s[1].Value.Uint64()
}

// folderSize adds up the space that files take; the database's maps are sparse, so lengths would tell stories.
func folderSize(dir string) (total uint64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			total += spaceTaken(info)
		}
	}
	return total
}
