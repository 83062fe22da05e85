package roster

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Beside acts of forked feeds, which nobody names who knows of the fork, a roster goes on as if they were not there: nothing is folded
// from the beginning.
func TestForkedActsCostNothing(t *testing.T) {
	s := begin(t)
	s.admin(1)
	s.do(0, Admit, 2, nil)
	s.do(0, Admit, 3, nil)
	forked := s.act(1, Nickname, s.r.Heads())
	forked.Forked = true
	s.take(forked)
	before := s.r.present
	s.do(0, Remove, 2, nil)
	s.do(0, SetRole, 3, func(a *Act) { a.Role = Admin })
	require.True(t, before == s.r.present)
	s.is(2, None)
	s.is(3, Admin)
	require.Equal(t, NotAllowed, s.view().Void[forked.ID])
}
