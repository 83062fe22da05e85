package identity_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
)

// frameVectors are the frames of /hima/lan/1, as examples of framing.
func frameVectors(t *testing.T) []frameVector {
	a, _, d, _ := seedsOfVectors()
	c := identity.NewCertificate(identity.AccountKeyFromSeed(a), identity.DeviceKeyFromSeed(d).ID(), day)
	var out []frameVector
	for _, m := range []proto.Message{
		&pb.LanQuestion{Version: 1},
		&pb.LanProfile{Certificate: c.Raw(), Username: "alice", Nickname: "Алиса 葵", Agent: "hima/0.1"},
	} {
		b, err := wire.Append(nil, m)
		require.NoError(t, err)
		out = append(out, frameVector{string(m.ProtoReflect().Descriptor().Name()), hx(b)})
	}
	return out
}
