package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/control"
	"hima/internal/control/pb"
)

func TestWhatIsPendingSurvivesAndArrives(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	alice.register()
	bob.register()
	befriend(t, alice, bob)
	bob.halt()
	alice.send("bob", "while you were away")
	_, states := alice.history("bob")
	require.Equal(t, "pending", states["while you were away"])
	alice.halt()
	bob.start()
	bob.send("alice", "and you too")
	alice.start()
	require.Equal(t, "unlocked", alice.status().GetState(), "without a password it unlocks itself")
	alice.eventuallyState("bob", "while you were away", "delivered")
	bob.eventuallyState("alice", "and you too", "delivered")
	ours, _ := alice.history("bob")
	theirs, _ := bob.history("alice")
	require.ElementsMatch(t, []string{"while you were away", "and you too"}, ours)
	require.Equal(t, ours, theirs, "said at once, and still in one order on both sides")
	require.False(t, alice.status().GetRestored())
}

func TestLockedAndPasswords(t *testing.T) {
	p := newPerson(t, "alice")
	p.start()
	ctx := t.Context()
	require.Equal(t, "empty", p.status().GetState())
	_, err := p.Conversations(ctx, &pb.ConversationsRequest{})
	refused(t, err, control.NoProfile)
	_, err = p.Login(ctx, &pb.LoginRequest{Password: "x"})
	refused(t, err, control.NoProfile)
	for _, in := range []*pb.RegisterRequest{
		{Username: "alice"},
		{Username: "bob", NoPassword: true},
		{Username: "alice", Password: "a", NoPassword: true},
		{Username: "hima1qqqq", NoPassword: true},
		{Username: "alice", NoPassword: true, Phrase: "not a phrase"},
	} {
		_, err = p.Register(ctx, in)
		refused(t, err, control.Invalid)
	}
	_, err = p.Register(ctx, &pb.RegisterRequest{Username: "alice", Password: "one"})
	require.NoError(t, err)
	_, err = p.Register(ctx, &pb.RegisterRequest{Username: "alice", Password: "two"})
	refused(t, err, control.Exists)
	p.send("self", "a note")
	_, err = p.Login(ctx, &pb.LoginRequest{Password: "two"})
	refused(t, err, control.WrongPassword)
	p.halt()

	p.start()
	require.Equal(t, "locked", p.status().GetState())
	calls := map[string]func() error{
		"Send":         func() error { _, err := p.Send(ctx, &pb.SendRequest{Who: "self", Text: "x"}); return err },
		"History":      func() error { _, err := p.History(ctx, &pb.HistoryRequest{Who: "self"}); return err },
		"Whoami":       func() error { _, err := p.Whoami(ctx, &pb.WhoamiRequest{}); return err },
		"ListContacts": func() error { _, err := p.ListContacts(ctx, &pb.ListContactsRequest{}); return err },
		"CreateInvite": func() error { _, err := p.CreateInvite(ctx, &pb.CreateInviteRequest{}); return err },
		"ListSettings": func() error { _, err := p.ListSettings(ctx, &pb.ListSettingsRequest{}); return err },
		"Watch": func() error {
			return p.Watch(ctx, control.WatchOptions{Patience: -1}, func(*pb.Event) error { return nil })
		},
		"wrong password": func() error {
			if _, err := p.Login(ctx, &pb.LoginRequest{Password: "two"}); control.CodeOf(err) != control.WrongPassword {
				return err
			}
			return control.Locked
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) { refused(t, call(), control.Locked) })
	}
	_, err = p.ChangePassword(ctx, &pb.ChangePasswordRequest{OldPassword: "two", NewPassword: "three"})
	refused(t, err, control.WrongPassword)
	_, err = p.ChangePassword(ctx, &pb.ChangePasswordRequest{OldPassword: "one", NewPassword: "three"})
	require.NoError(t, err, "a locked profile's password can be changed")
	_, err = p.Login(ctx, &pb.LoginRequest{Password: "one"})
	refused(t, err, control.WrongPassword)
	_, err = p.Login(ctx, &pb.LoginRequest{Password: "three"})
	require.NoError(t, err)
	texts, _ := p.history("self")
	require.Equal(t, []string{"a note"}, texts)
	require.NotContains(t, p.status().GetWarnings(), "no_password")

	_, err = p.ChangePassword(ctx, &pb.ChangePasswordRequest{OldPassword: "three", NoPassword: true})
	require.NoError(t, err, "and an unlocked one's too")
	require.Contains(t, p.status().GetWarnings(), "no_password")
	_, err = p.Stop(ctx, &pb.StopRequest{Logout: true})
	require.NoError(t, err)
	p.wait()
	p.start()
	require.Equal(t, "locked", p.status().GetState(), "logged out stays locked, without a password too")
	_, err = p.Login(ctx, &pb.LoginRequest{})
	require.NoError(t, err)
	p.halt()
	p.start()
	require.Equal(t, "unlocked", p.status().GetState())
}

func TestPasswordAtStart(t *testing.T) {
	p := newPerson(t, "alice")
	p.start()
	_, err := p.Register(t.Context(), &pb.RegisterRequest{Username: "alice", Password: "one"})
	require.NoError(t, err)
	p.halt()
	p.config = func(c *Config) { c.Password = "two" }
	refused(t, p.run(), control.WrongPassword)
	p.config = func(c *Config) { c.Password = "one" }
	p.start()
	require.Equal(t, "unlocked", p.status().GetState())
}

func TestSecondNodeOfAProfileIsRefused(t *testing.T) {
	p := newPerson(t, "alice")
	p.register()
	second := *p
	err := second.run()
	require.ErrorIs(t, err, ErrRunning)
	refused(t, err, control.Conflict)
	require.Equal(t, "unlocked", p.status().GetState())
}

func TestTwoProfilesOfOneHome(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	bob.home = alice.home
	alice.register()
	bob.register()
	befriend(t, alice, bob)
	alice.send("bob", "hello")
	bob.eventuallyTexts("alice", "hello")
	bob.halt() // before the folder goes
}

func TestNobodyRegisteredLeavesNothing(t *testing.T) {
	p := newPerson(t, "alice")
	p.config = func(c *Config) { c.Create = false }
	refused(t, p.run(), control.NoProfile)
	p.config = nil
	p.start()
	_, err := p.Register(t.Context(), &pb.RegisterRequest{Username: "alice"})
	require.Error(t, err)
	p.halt()
	left, err := os.ReadDir(filepath.Join(p.home, profilesFolder))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestWatchAcrossRestarts(t *testing.T) {
	p := newPerson(t, "alice")
	p.register()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var seqs []uint64
	seen := make(chan string, 100)
	ended := make(chan error, 1)
	since := p.status().GetLastEvent() // before anything is said
	go func() {
		ended <- p.Client.Watch(ctx, control.WatchOptions{Since: since}, func(e *pb.Event) error {
			if e.GetType() == "message" {
				seqs = append(seqs, e.GetSeq())
				seen <- e.GetMessage().GetText()
			}
			return nil
		})
	}()
	for i := range 6 {
		text := fmt.Sprintf("note %d", i)
		p.send("self", text)
		if i == 1 || i == 3 {
			// The watcher keeps its own client; only the node goes.
			p.stop()
			require.NoError(t, <-p.result)
			p.start()
		}
		select {
		case got := <-seen:
			require.Equal(t, text, got)
		case <-ctx.Done():
			t.Fatalf("%s was not told of", text)
		}
	}
	cancel()
	<-ended
	require.IsIncreasing(t, seqs)
}

// copyFolder copies what is in a folder to another, as a backup program would.
func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	require.NoError(t, os.CopyFS(to, os.DirFS(from)))
	require.NoError(t, filepath.Walk(to, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Name() == socketFile {
			return os.Remove(path)
		}
		return err
	}))
}

func TestCopiedProfileGoesOnUnderANewKey(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	alice.register()
	bob.register()
	befriend(t, alice, bob)
	alice.send("bob", "one")
	alice.eventuallyState("bob", "one", "delivered")
	before := alice.status().GetDevice()
	alice.halt()

	copied := newPerson(t, "alice")
	require.NoError(t, os.RemoveAll(copied.home))
	copyFolder(t, alice.home, copied.home)
	copied.start()
	s := copied.status()
	require.True(t, s.GetRestored())
	require.Contains(t, s.GetWarnings(), "restored_copy")
	require.NotEqual(t, before, s.GetDevice())
	copied.send("bob", "from the copy")
	bob.eventuallyTexts("alice", "one", "from the copy")
	copied.halt()
	copied.start()
	require.False(t, copied.status().GetRestored(), "its own marker now")

	alice.start()
	require.Equal(t, before, alice.status().GetDevice(), "the original is none the wiser")
	alice.send("bob", "from the original")
	alice.eventuallyState("bob", "from the original", "delivered")
}

func TestRolledBackDatabaseGoesOnUnderANewKey(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	alice.register()
	bob.register()
	befriend(t, alice, bob)
	alice.send("bob", "one")
	alice.eventuallyState("bob", "one", "delivered")
	alice.halt()
	db := filepath.Join(alice.home, profilesFolder, "alice", databaseFolder)
	backup := filepath.Join(t.TempDir(), "db")
	copyFolder(t, db, backup)

	alice.start()
	before := alice.status().GetDevice()
	alice.send("bob", "two")
	alice.eventuallyState("bob", "two", "delivered")
	alice.halt()

	// In place: the folder keeps its inode, only its files are old again.
	names, err := os.ReadDir(db)
	require.NoError(t, err)
	for _, n := range names {
		require.NoError(t, os.RemoveAll(filepath.Join(db, n.Name())))
	}
	copyFolder(t, backup, db)
	alice.start()
	require.True(t, alice.status().GetRestored())
	require.NotEqual(t, before, alice.status().GetDevice())
	alice.eventuallyTexts("bob", "one", "two") // what was lost here comes back from the other side
	alice.send("bob", "three")
	bob.eventuallyTexts("alice", "one", "two", "three")
	alice.eventuallyState("bob", "three", "delivered")
}

func TestWholeFolderRolledBackInPlaceIsNoticedByThePeer(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	alice.register()
	bob.register()
	befriend(t, alice, bob)
	alice.send("bob", "one")
	alice.eventuallyState("bob", "one", "delivered")
	alice.halt()
	dir := filepath.Join(alice.home, profilesFolder, "alice")
	backup := filepath.Join(t.TempDir(), "alice")
	copyFolder(t, dir, backup)
	alice.start()
	before := alice.status().GetDevice()
	alice.send("bob", "two")
	alice.eventuallyState("bob", "two", "delivered")
	alice.halt()

	// Every file is written back into its own inode, as restoring a virtual disk does: nothing here shows it.
	restoreInPlace(t, backup, dir)
	alice.start()
	require.Eventually(t, func() bool {
		s, err := alice.Status(t.Context(), &pb.StatusRequest{})
		return err == nil && s.GetRestored() && s.GetDevice() != before
	}, patience, 20*time.Millisecond, "the divergence was not noticed")
	alice.eventuallyTexts("bob", "one", "two") // what was lost here comes back from the other side
	alice.send("bob", "three")
	bob.eventuallyTexts("alice", "one", "two", "three")
	alice.eventuallyState("bob", "three", "delivered")
}

func restoreInPlace(t *testing.T, from, to string) {
	t.Helper()
	want := map[string]bool{}
	require.NoError(t, filepath.Walk(from, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil || info.IsDir() {
			return err
		}
		want[rel] = true
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o600) // truncates and keeps the inode
	}))
	require.NoError(t, filepath.Walk(to, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		if rel, err := filepath.Rel(to, path); err != nil || want[rel] {
			return err
		}
		return os.Remove(path)
	}))
}
