package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/control/server"
	"hima/internal/directory"
	"hima/internal/mailbox"
	"hima/internal/replica"
	"hima/node"
)

// Config says which profile to run, and how.
type Config struct {
	// Home is the parent of all profiles; see Home.
	Home string
	// Profile is a canonical username, the name of the profile's folder.
	Profile string
	// Create lets the folder be made, for a register that follows. A profile that is still empty when Run ends is removed.
	Create bool
	// Password unlocks at the start. Empty: a profile without a password unlocks itself, any other waits for a login.
	Password string
	// Settings are those of flags and environment merged with the configuration file's.
	Settings Settings
	// Logger is where to write; nil: the profile's log file.
	Logger *slog.Logger
	// Ready is called once, when the local API answers; nil: nobody.
	Ready func()
	// OwnProcess says that this process is the node's alone, so that Run may tell the Go runtime how much memory and how
	// many threads to use, and give memory back after bursts.
	OwnProcess bool
	// WorkFactor is that of scrypt; 0: the product's. Tests take a low one.
	WorkFactor int
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// profile is a running profile. The loop goroutine of Run owns the unlocked part's life; what others need of it they
// take under mu.
type profile struct {
	config Config
	dir    string
	log    *slog.Logger
	now    func() time.Time
	start  time.Time
	stop   context.CancelFunc // ends Run
	opened chan *unlocked     // from whoever unlocked to the loop
	ending *ending

	opening sync.Mutex // held while a vault is read, made or changed, and while parts open

	mu       sync.Mutex // guards all below
	current  *unlocked  // nil: locked or empty
	empty    bool       // no vault
	password bool       // the vault is under a password
	stopping bool       // nothing is unlocked any more
}

// Run serves one profile until ctx ends or the local API is told to stop. It returns ErrNoProfile for a name nobody
// registered (unless Create), ErrRunning when another process serves it, ErrBadConfig, and the errors of a vault or a
// database that does not open, for a profile that unlocks itself. Every error carries a code of package control.
func Run(ctx context.Context, c Config) error { return coded(run(ctx, c)) }

func run(ctx context.Context, c Config) error {
	if c.Now == nil {
		c.Now = time.Now
	}
	if err := c.Settings.Check(); err != nil {
		return err
	}
	dir, err := profileDir(c.Home, c.Profile)
	if err != nil {
		return err
	}
	if err := prepareFolder(dir, c.Create); err != nil {
		return err
	}
	release, err := lockProfile(dir)
	if err != nil {
		return err
	}
	defer func() { _ = release() }() // goes with the process anyway
	defer removeIfEmpty(dir)

	log, closeLog, err := openLogger(dir, c)
	if err != nil {
		return err
	}
	defer closeLog()
	limit, err := c.Settings.memory()
	if err != nil {
		return err
	}
	if c.OwnProcess {
		tuneRuntime(limit)
	}
	if c.OwnProcess && c.Logger == nil {
		stop, err := keepCrashes(dir)
		if err != nil {
			return err
		}
		defer stop()
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	p := &profile{
		config: c, dir: dir, log: log, now: c.Now, start: c.Now(), stop: stop,
		opened: make(chan *unlocked, 1), ending: newEnding(log, c.OwnProcess),
	}
	if err := p.unlockAtStart(ctx); err != nil {
		log.Error("opening the profile", "err", err)
		return err
	}
	return p.serve(ctx)
}

// serve runs the local API and whatever is unlocked.
func (p *profile) serve(ctx context.Context) error {
	path, err := SocketPath(p.config.Home, p.config.Profile)
	if err != nil {
		return errors.Join(err, p.closeOpened())
	}
	listener, err := server.Listen(path, p.log)
	if err != nil {
		return errors.Join(err, p.closeOpened())
	}
	p.log.Info("node started", "profile", p.config.Profile, "pid", os.Getpid())
	if err := notify("READY=1"); err != nil {
		p.log.Warn("telling the service manager", "err", err)
	}
	if p.config.Ready != nil {
		p.config.Ready()
	}
	g, gctx := errgroup.WithContext(ctx)
	defer p.ending.watch(gctx)()
	g.Go(func() error {
		defer p.ending.enter("local API")()
		return server.New(server.Config{Backend: p, Logger: p.log}).Serve(gctx, listener)
	})
	g.Go(func() error { return p.loop(gctx) })
	if p.config.OwnProcess {
		g.Go(func() error { return trimMemory(gctx) })
	}
	g.Go(func() error {
		<-gctx.Done()
		return notify("STOPPING=1")
	})
	err = g.Wait()
	if err != nil {
		p.log.Error("node stopped", "err", err)
		return err
	}
	p.log.Info("node stopped")
	return nil
}

// closeOpened closes what was unlocked before anything ran it.
func (p *profile) closeOpened() error {
	select {
	case u := <-p.opened:
		return u.close()
	default:
		return nil
	}
}

// loop runs unlocked profiles, one after the other: the next one begins when the key of the device had to be replaced.
func (p *profile) loop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return p.shut(nil, true)
		case u := <-p.opened:
			err := u.run(ctx)
			again := errors.Is(err, errDiverged)
			if again {
				err = nil
			}
			if err = errors.Join(err, p.shut(u, !again)); err != nil || !again {
				return err
			}
			// Under a password the vault can only be rewritten by its owner: then the profile stays locked until a login.
			if err := p.unlockAtStart(ctx); err != nil {
				return err
			}
		}
	}
}

// shut closes an unlocked profile, or whatever was opened and never ran. No login can open it anew meanwhile, nor ever
// again after the last.
func (p *profile) shut(u *unlocked, last bool) error {
	busy := p.ending.enter("register or login under way")
	p.opening.Lock()
	busy()
	defer p.opening.Unlock()
	p.mu.Lock()
	p.current, p.stopping = nil, last
	p.mu.Unlock()
	if u == nil {
		return p.closeOpened()
	}
	return u.close()
}

// unlockAtStart opens a profile that needs nobody to type a password.
func (p *profile) unlockAtStart(ctx context.Context) error {
	p.opening.Lock()
	defer p.opening.Unlock()
	sealed, err := readVault(p.dir)
	if errors.Is(err, ErrNoProfile) {
		if !p.config.Create {
			return fmt.Errorf("%s: %w", p.config.Profile, ErrNoProfile)
		}
		p.setState(true, false)
		return nil
	}
	if err != nil {
		return err
	}
	p.setState(false, sealed.needsPassword())
	_, err = os.Stat(filepath.Join(p.dir, logoutFile))
	loggedOut := err == nil
	if p.config.Password == "" && (sealed.needsPassword() || loggedOut) {
		return nil
	}
	password := identity.Password(p.config.Password)
	p.config.Password = "" // used once
	v, err := sealed.open(password)
	if err != nil {
		return err
	}
	return p.unlock(ctx, v, password, false)
}

func (p *profile) setState(empty, password bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.empty, p.password = empty, password
}

// coded gives an error that ends the node the code and the hint that a face needs.
func coded(err error) error {
	if err == nil || control.CodeOf(err) != control.Internal {
		return err
	}
	for _, c := range []struct {
		is   error
		code control.Code
		hint string
	}{
		{ErrNoProfile, control.NoProfile, "register first, or name another profile"},
		{ErrManyProfiles, control.Ambiguous, "name one of them"},
		{ErrRunning, control.Conflict, "use the node that is running, or stop it first"},
		{ErrBadConfig, control.Invalid, "mend the configuration"},
		{ErrBadProfile, control.Invalid, ""},
	} {
		if errors.Is(err, c.is) {
			return &control.Error{Code: c.code, Message: err.Error(), Hint: c.hint, Cause: err}
		}
	}
	return server.Translate(err)
}

// Protocols lists the network protocols this version speaks.
func Protocols() []string {
	return []string{
		replica.Protocol, directory.LanProtocol, mailbox.Protocol, directory.NetworkProtocol, directory.NamesProtocol,
		directory.GroupProtocol, node.GossipProtocol,
	}
}

// prepareFolder makes the folder of a profile, or checks that it is there.
func prepareFolder(dir string, create bool) error {
	if create {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making the profile's folder: %w", err)
		}
		return nil
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", filepath.Base(dir), ErrNoProfile)
	} else if err != nil {
		return fmt.Errorf("looking for the profile: %w", err)
	}
	return nil
}

// removeIfEmpty leaves nothing of a profile in which nobody registered. Only files that a start makes are removed.
func removeIfEmpty(dir string) {
	if _, err := os.Stat(filepath.Join(dir, vaultFile)); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	if _, err := os.Stat(filepath.Join(dir, databaseFolder)); !errors.Is(err, fs.ErrNotExist) {
		return // somebody lost a vault: nothing is thrown away
	}
	for _, name := range []string{socketFile, portFile, logFileName, logFileName + ".1", crashFile, logoutFile, lockFile} {
		_ = os.Remove(filepath.Join(dir, name)) // what cannot be removed keeps the folder, which the next line then leaves
	}
	_ = os.Remove(dir)
}

// openLogger returns the logger of Config, or one to the profile's log file.
func openLogger(dir string, c Config) (*slog.Logger, func(), error) {
	if c.Logger != nil {
		return c.Logger, func() {}, nil
	}
	level, err := c.Settings.level()
	if err != nil {
		return nil, nil, err
	}
	f, err := openLog(filepath.Join(dir, logFileName))
	if err != nil {
		return nil, nil, err
	}
	log := slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: level}))
	return log, func() { _ = f.Close() }, nil
}
