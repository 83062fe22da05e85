package groups

import (
	"testing"

	"github.com/stretchr/testify/require"

	"hima/storage"
)

// The state that is remembered is that of the row as the asking transaction sees it, also of one that is not kept.
func TestStateOfARow(t *testing.T) {
	db, err := storage.Open(storage.Config{})
	require.NoError(t, err)
	defer db.Close()
	g := &Groups{states: states{of: map[ID]decodedState{}}}
	conv := ID(testHash("group"))
	require.NoError(t, db.Update(t.Context(), func(tx *storage.Tx) error {
		_, known, err := g.state(tx, conv)
		require.NoError(t, err)
		require.False(t, known)
		return putRow(tx, groupKey(conv), groupRow{State: StateMember, Name: "tea"})
	}))
	require.ErrorIs(t, db.Update(t.Context(), func(tx *storage.Tx) error {
		for range 2 {
			state, known, err := g.state(tx, conv)
			require.NoError(t, err)
			require.True(t, known)
			require.Equal(t, StateMember, state)
		}
		require.NoError(t, putRow(tx, groupKey(conv), groupRow{State: StateNone, Name: "tea"}))
		state, _, err := g.state(tx, conv)
		require.NoError(t, err)
		require.Equal(t, StateNone, state)
		return ErrNotFound // none of it is kept
	}), ErrNotFound)
	require.NoError(t, db.View(func(tx *storage.Tx) error {
		state, _, err := g.state(tx, conv)
		require.Equal(t, StateMember, state)
		require.Len(t, g.states.of, 1)
		return err
	}))
}
