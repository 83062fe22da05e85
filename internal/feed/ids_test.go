package feed

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"hima/identity"
)

func TestIDsAsText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "id"))
		id, conv := EntryID(raw), ConversationID(raw)
		gotID, err := ParseEntryID(id.String())
		require.NoError(t, err)
		require.Equal(t, id, gotID)
		gotConv, err := ParseConversationID(conv.String())
		require.NoError(t, err)
		require.Equal(t, conv, gotConv)
		require.Equal(t, id.String()[:8], id.Short())
		type both struct {
			E EntryID
			C ConversationID
		}
		b, err := json.Marshal(both{id, conv})
		require.NoError(t, err)
		var back both
		require.NoError(t, json.Unmarshal(b, &back))
		require.Equal(t, both{id, conv}, back)
	})
}

func TestBadIDsAreRefused(t *testing.T) {
	for _, s := range []string{"", "00", EntryID{}.String() + "0", "g" + EntryID{}.String()[1:]} {
		_, err := ParseEntryID(s)
		require.ErrorIs(t, err, ErrMalformed)
		id := ConversationID{1}
		require.ErrorIs(t, id.UnmarshalText([]byte(s)), ErrMalformed)
		require.Equal(t, ConversationID{1}, id, "a failed parse must change nothing")
	}
}

func TestConversationIDs(t *testing.T) {
	a, b, c := newWriter("alice").account, newWriter("bob").account, newWriter("carol").account
	require.Equal(t, DirectConversation(a, b), DirectConversation(b, a))
	require.NotEqual(t, DirectConversation(a, b), DirectConversation(a, c))
	require.NotEqual(t, DirectConversation(a, a), SelfConversation(a))
	require.NotEqual(t, SelfConversation(a), SelfConversation(b))
}

func TestKnownKinds(t *testing.T) {
	require.True(t, Known(Chat, KindText))
	require.True(t, Known(Control, KindAccept))
	require.False(t, Known(Chat, KindAccept), "a control kind means nothing in chat")
	require.False(t, Known(Control, KindText))
	require.False(t, Known(Chat, 4000))
	require.False(t, Known(3, KindText))
	require.Equal(t, []string{"control", "chat", "feed 7"}, []string{Control.String(), Chat.String(), Number(7).String()})
}

func TestWork(t *testing.T) {
	a, b := newWriter("alice").account, newWriter("bob").account
	entry := EntryID{4, 5, 6}
	work := Work(a, b, entry, 10)
	require.True(t, CheckWork(a, b, entry, work, 10))
	require.False(t, CheckWork(b, a, entry, work, 10), "work for one direction must not count for the other")
	require.False(t, CheckWork(a, b, EntryID{}, work, 10))
	require.False(t, CheckWork(a, b, entry, append(work, 0), 0))
	require.False(t, CheckWork(a, b, entry, nil, 0))
	require.False(t, CheckWork(a, b, entry, work, 200))
	require.Nil(t, Work(a, b, entry, MaxWorkBits+1))
	require.Equal(t, 256, zeroBits([32]byte{}))
	require.Equal(t, 67, zeroBits([32]byte{8: 0x10}))
}

func TestTimes(t *testing.T) {
	e := newWriter("alice").write(t, Tip{}, 1)[0]
	require.True(t, testCreated.Equal(e.Time()))
	require.False(t, e.Ahead(testCreated.Add(-24*time.Hour)))
	require.True(t, e.Ahead(testCreated.Add(-24*time.Hour-time.Millisecond)))
	require.Equal(t, identity.MaxCertificate, MaxCertificate)
}
