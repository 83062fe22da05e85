package groups

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/mailbox"
	"hima/storage"
)

// health is how well the only group of somebody works.
func (p *villager) health() (h Health) {
	p.v.t.Helper()
	err := p.db.View(func(tx *storage.Tx) error {
		all, err := p.g.Health(tx)
		if len(all) > 0 {
			h = all[0]
		}
		return err
	})
	require.NoError(p.v.t, err)
	return h
}

// Who cannot be reached is out of reach after a while and not at once, and a log that fails is known to until it works again.
func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 4)
		box, _ := v.office(0, mailbox.ServerLimits{})
		alice, bob := v.villager("alice", 1, box), v.villager("bob", 2, box)
		conv := v.found(alice.up(), bob.up())
		require.Equal(t, Health{Group: conv}, alice.health())

		v.w.Cut(0, 1)
		v.until("the log is known to fail", 10*time.Minute, func() bool { return alice.health().Log != nil })
		v.w.Heal(0, 1)
		v.w.Connect(1, 0)
		v.until("it is known to work", 20*time.Minute, func() bool { return alice.health().Log == nil })

		bob.down()
		require.False(t, alice.health().Unreached, "he has just gone")
		v.until("he is out of reach", 20*time.Minute, func() bool { return alice.health().Unreached })
		bob.up()
		v.w.Connect(1, 2)
		v.until("he is back", 20*time.Minute, func() bool { return !alice.health().Unreached })
		require.Equal(t, Health{Group: conv}, alice.health())
	})
}

// Of whom no device is known yet, as after the phrase was typed in, is not out of reach at once.
func TestHealthWithoutDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 4)
		_, _ = v.office(0, mailbox.ServerLimits{})
		alice, bob := v.villager("alice", 1), v.villager("bob", 2)
		conv := v.found(alice.up(), bob.up())
		bob.down()
		alice.down()
		v.mu.Lock()
		delete(v.records, bob.self.Account)
		v.mu.Unlock()
		alice.up()
		time.Sleep(healthWait / 2)
		require.Equal(t, Health{Group: conv}, alice.health())
		time.Sleep(healthWait)
		require.True(t, alice.health().Unreached)
	})
}

// A log without room is told from one that does not answer.
func TestHealthOfAFullLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 4)
		box, _ := v.office(0, mailbox.ServerLimits{LogBytes: 10})
		alice, bob := v.villager("alice", 1, box), v.villager("bob", 2, box)
		conv := v.found(alice.up(), bob.up())
		bob.down()
		alice.text(conv, "no room for this")
		v.until("the log is known to be full", 2*time.Minute, func() bool { return alice.health().Log != nil })
		require.ErrorIs(t, alice.health().Log, mailbox.ErrFull)
	})
}
