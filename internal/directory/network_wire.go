package directory

import (
	"bufio"
	"context"
	"fmt"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
)

// networkVersion is the version of the question of /hima/network/1.
const networkVersion = 1

// asker asks bootstrap nodes. Streams of a node answer it, or a fake in tests. What comes back is checked as far as it can
// be without knowing the network.
type asker interface {
	card(ctx context.Context, dev identity.DeviceID, addrs []string) (identity.NetworkCard, error)
	name(ctx context.Context, dev identity.DeviceID, addrs []string, q *pb.NameRequest) (nameAnswer, error)
}

// nameAnswer is a checked answer of a register. Whether the stamp is of a key of the network, and about the name that was
// asked for, is for the caller to see.
type nameAnswer struct {
	code       pb.NameAnswer_Code
	stamp      identity.NameStamp // zero: none
	rebuilding bool
}

func checkNameAnswer(m *pb.NameAnswer) (nameAnswer, error) {
	a := nameAnswer{code: m.Code, rebuilding: m.Rebuilding || m.Code == pb.NameAnswer_CODE_REBUILDING}
	if len(m.Stamp) > 0 {
		s, err := identity.ParseNameStamp(m.Stamp)
		if err != nil {
			return nameAnswer{}, err
		}
		a.stamp = s
	}
	if m.Code == pb.NameAnswer_CODE_TAKEN && a.stamp.IsZero() {
		return nameAnswer{}, fmt.Errorf("taken by nobody: %w", wire.ErrMalformed)
	}
	return a, nil
}

// streams asks over the network.
type streams struct{ node *node.Node }

func (s streams) card(ctx context.Context, dev identity.DeviceID, addrs []string) (identity.NetworkCard, error) {
	var m pb.Signed
	err := s.roundTrip(ctx, dev, addrs, NetworkProtocol, wire.MaxNetworkFrame, &pb.NetworkQuestion{Version: networkVersion}, &m)
	if err != nil {
		return identity.NetworkCard{}, fmt.Errorf("asking for a network card: %w", err)
	}
	c, err := decodeCard(&m)
	if err != nil {
		return identity.NetworkCard{}, err
	}
	if c.Device != dev {
		return identity.NetworkCard{}, fmt.Errorf("network card of another device: %w", identity.ErrBadSignature)
	}
	return c, nil
}

// decodeCard checks a card as it comes off the wire: the message is the signed bytes themselves.
func decodeCard(m *pb.Signed) (identity.NetworkCard, error) {
	raw, err := proto.Marshal(m)
	if err != nil {
		return identity.NetworkCard{}, err
	}
	return identity.ParseNetworkCard(raw)
}

func (s streams) name(ctx context.Context, dev identity.DeviceID, addrs []string, q *pb.NameRequest) (nameAnswer, error) {
	var m pb.NameAnswer
	if err := s.roundTrip(ctx, dev, addrs, NamesProtocol, wire.MaxNamesFrame, q, &m); err != nil {
		return nameAnswer{}, fmt.Errorf("asking a register: %w", err)
	}
	return checkNameAnswer(&m)
}

// roundTrip opens a stream, writes one frame and reads one.
func (s streams) roundTrip(
	ctx context.Context, dev identity.DeviceID, addrs []string, proto string, limit int, q, a proto.Message,
) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if len(addrs) > 0 && !s.node.Connected(dev) {
		s.node.Remember(dev, addrs)
	}
	st, err := s.node.Open(ctx, dev, proto)
	if err != nil {
		return err
	}
	defer st.Reset()
	stop := context.AfterFunc(ctx, st.Reset)
	defer stop()
	if err := wire.Write(st, limit, q); err != nil {
		return err
	}
	if err := st.CloseWrite(); err != nil {
		return err
	}
	return wire.Read(bufio.NewReaderSize(st, 1<<10), limit, a)
}

// serveOne reads one frame within the deadline, lets answer judge it, and writes what it returns.
func serveOne(s *node.Stream, limit int, q proto.Message, answer func() proto.Message) error {
	// The wall clock, not a configured one: the deadline is the network's.
	if err := s.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return err
	}
	if err := wire.Read(bufio.NewReaderSize(s, 1<<10), limit, q); err != nil {
		return err
	}
	if err := wire.Write(s, limit, answer()); err != nil {
		return err
	}
	return s.Close()
}

// splitAddr takes the device off the end of a multiaddr: who is to answer, and where.
func splitAddr(s string) (identity.DeviceID, string, error) {
	if len(s) > 2*maxAddrText {
		return identity.DeviceID{}, "", fmt.Errorf("%d bytes: %w", len(s), ErrBadLink)
	}
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return identity.DeviceID{}, "", fmt.Errorf("%w: %w", ErrBadLink, err)
	}
	where, last := ma.SplitLast(a)
	if last == nil || last.Protocol().Code != ma.P_P2P || len(where) == 0 {
		return identity.DeviceID{}, "", fmt.Errorf("the address does not end in /p2p/ and an ID: %w", ErrBadLink)
	}
	dev, err := identity.ParseDeviceID(last.Value())
	if err != nil {
		return identity.DeviceID{}, "", fmt.Errorf("%w: %w", ErrBadLink, err)
	}
	return dev, where.String(), nil
}
