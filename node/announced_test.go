package node_test

import (
	"testing"
	"testing/synctest"
	"time"

	"hima/node/nodetest"
)

func TestAnnouncedIsForLateSubscribers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 3)
		synctest.Wait()
		if got := w.Node(0).Announced(); len(got) != 2 || !got[0].Less(got[1]) {
			t.Fatalf("announced: %v", got)
		}
		time.Sleep(6 * time.Minute) // the simulated LAN announces once
		if got := w.Node(0).Announced(); len(got) != 0 {
			t.Fatalf("announced six minutes ago: %v", got)
		}
	})
}
