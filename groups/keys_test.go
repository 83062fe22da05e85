package groups

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/wire/pb"
	"hima/storage"
)

// Who does not understand an act does not know to whom a key may go (R10).
func TestReadOnlyHandsNoKeysOver(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{}, bob, carol)
	alice.says(conv, "hello")
	w.meet(alice, bob)
	held := func() (n int) {
		bob.view(func(tx *storage.Tx) error {
			keys, err := bob.g.KeysFor(tx, carol.self)
			n = len(keys)
			return err
		})
		return n
	}
	require.Equal(t, 1, held())
	bob.update(func(tx *storage.Tx) error {
		row, _, err := getRow[groupRow](tx, groupKey(conv))
		row.ReadOnly = true
		if err == nil {
			err = putRow(tx, groupKey(conv), row)
		}
		return err
	})
	require.Zero(t, held())
}

// A mail with keys may be anybody's: of who does not share the group nothing is kept, or it would take the place of what waits for
// its act.
func TestKeysOfAStrangerAreNotKept(t *testing.T) {
	w := begin(t)
	alice, bob, mallory := w.person("alice"), w.person("bob"), w.person("mallory")
	conv := alice.create(Options{}, bob)
	alice.says(conv, "hello") // and makes an epoch
	alice.givesKeys(bob)      // before its act
	require.Empty(t, bob.keysHeld(conv))
	for i := range byte(4 * maxKeys) {
		w.now = w.now.Add(time.Second)
		k := &pb.GroupKey{Epoch: bytes.Repeat([]byte{i}, 32), Key: make([]byte, 32)}
		k.Key[0] = 1
		require.NoError(t, bob.g.TookKeys(t.Context(), mallory.self, &pb.GroupKeys{Group: conv[:], Keys: []*pb.GroupKey{k}}))
	}
	alice.givesGroup(bob, conv)
	require.Len(t, bob.keysHeld(conv), 1)
}
