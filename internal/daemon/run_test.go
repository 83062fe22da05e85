package daemon

import (
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/control/pb"
)

func TestTwoPeopleChat(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	require.NotEmpty(t, alice.register().GetPhrase())
	bob.register()
	befriend(t, alice, bob)

	alice.send("bob", "one")
	bob.eventuallyTexts("alice", "one")
	alice.eventuallyState("bob", "one", "delivered")
	_, err := bob.MarkRead(t.Context(), &pb.MarkReadRequest{Who: "alice"})
	require.NoError(t, err)
	alice.eventuallyState("bob", "one", "read")
	bob.send("alice", "two")
	alice.eventuallyTexts("bob", "one", "two")
	bob.eventuallyState("alice", "two", "delivered")
}
