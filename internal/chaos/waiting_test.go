package chaos

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"hima/internal/control/pb"
)

// Ten thousand messages wait for somebody who is away. They survive a kill of their author, and when the other comes
// back they arrive by themselves, all and in order.
func TestTenThousandWait(t *testing.T) {
	const total, workers = 10_000, 64
	alice, bob := pair(t)
	bob.stop()
	begun := time.Now()
	var g errgroup.Group
	for w := range workers {
		g.Go(func() error {
			for i := w; i < total; i += workers {
				if _, err := alice.api().Send(alice.ctx(), &pb.SendRequest{Who: bob.account, Text: fmt.Sprintf("message %d", i)}); err != nil {
					return fmt.Errorf("sending %d: %w", i, err)
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	t.Logf("%d accepted in %v", total, time.Since(begun))
	alice.kill()
	alice.start()

	begun = time.Now()
	bob.start()
	eventually(t, "all have arrived", func() bool {
		st, err := alice.api().Status(alice.ctx(), &pb.StatusRequest{})
		return err == nil && st.GetPendingMessages() == 0
	})
	t.Logf("all delivered %v after the start", time.Since(begun))
	a, b := texts(alice.history(bob.account)), texts(bob.history(alice.account))
	require.Len(t, b, total)
	require.Len(t, a, total)
	for i := range b {
		require.Equal(t, a[i].GetId(), b[i].GetId())
		require.Equal(t, "delivered", a[i].GetState())
	}
}

// A profile folder is copied while its node is down, the original goes on, and the copy is put in its place. Nothing is
// ever written twice under one device key: the copy goes on as a new device, and the two still talk.
func TestFolderRolledBack(t *testing.T) {
	alice, bob := pair(t)
	send := func(p, to *person, text string) {
		_, err := p.api().Send(p.ctx(), &pb.SendRequest{Who: to.account, Text: text})
		require.NoError(t, err)
	}
	send(bob, alice, "before the copy")
	bob.stop()
	backup := filepath.Join(bob.home, "backup")
	profile := filepath.Join(bob.home, "profiles", "bob")
	copyFolder(t, profile, backup)
	bob.start()
	send(bob, alice, "after the copy 1")
	send(bob, alice, "after the copy 2")
	eventually(t, "alice has both", func() bool { return len(texts(alice.history(bob.account))) == 3 })
	before := bob.ready()
	bob.kill()
	require.NoError(t, os.RemoveAll(profile))
	require.NoError(t, os.Rename(backup, profile))

	bob.launch()
	after := bob.ready()
	require.True(t, after.GetRestored(), "the copy was not noticed")
	require.NotEqual(t, before.GetDevice(), after.GetDevice(), "the copy goes on under the old device key")
	send(bob, alice, "from the restored copy")
	send(alice, bob, "to the restored copy")
	want := []string{"after the copy 1", "after the copy 2", "before the copy", "from the restored copy", "to the restored copy"}
	for _, p := range []*person{alice, bob} {
		peer := map[*person]*person{alice: bob, bob: alice}[p]
		eventually(t, p.name+" has everything, also what the copy had lost", func() bool {
			var got []string
			for _, m := range texts(p.history(peer.account)) {
				got = append(got, m.GetText())
			}
			return sameWords(want, got)
		})
	}
}

func sameWords(want, got []string) bool {
	count := map[string]int{}
	for _, s := range want {
		count[s]++
	}
	for _, s := range got {
		count[s]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// copyFolder copies as a person would who makes a backup.
func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	out, err := exec.Command("cp", "-a", from, to).CombinedOutput()
	require.NoError(t, err, string(out))
}
