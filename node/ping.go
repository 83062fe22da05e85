package node

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"hima/identity"
)

const (
	// pingProtocol is libp2p's: every relay and bootstrap node of libp2p speaks it.
	pingProtocol = "/ipfs/ping/1.0.0"
	pingSize     = 32 // bytes, by that protocol
)

var errWrongEcho = errors.New("ping was answered with other bytes")

// pinger keeps one stream for all pings over a connection: 32 bytes each way.
type pinger struct{ s *Stream }

func (p *pinger) hangUp() {
	if p.s != nil {
		p.s.Reset()
		p.s = nil
	}
}

// ping measures a round trip. A peer that refuses the protocol has answered, too. Hurry shortens the wait, also one under
// way.
func (p *pinger) ping(ctx context.Context, n *Node, dev identity.DeviceID, c network.Conn, hurry <-chan struct{}) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	go func() {
		select {
		case <-hurry:
			t := time.NewTimer(suspectTimeout)
			defer t.Stop()
			select {
			case <-t.C:
				cancel()
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
	}()
	start := time.Now()
	if p.s != nil {
		if p.echo(ctx) == nil {
			return time.Since(start), nil
		}
		p.hangUp()
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		start = time.Now()
	}
	s, err := n.openOn(ctx, c, dev, pingProtocol)
	if errors.Is(err, ErrNotSpoken) || errors.Is(err, ErrRefused) && !c.IsClosed() {
		return time.Since(start), nil
	}
	if err != nil {
		return 0, err
	}
	p.s = s
	start = time.Now()
	if err := p.echo(ctx); err != nil {
		p.hangUp()
		return 0, err
	}
	return time.Since(start), nil
}

func (p *pinger) echo(ctx context.Context) error {
	out, in := make([]byte, pingSize), make([]byte, pingSize)
	rand.Read(out)
	stop := context.AfterFunc(ctx, p.s.Reset)
	defer stop()
	if _, err := p.s.Write(out); err != nil {
		return err
	}
	if _, err := io.ReadFull(p.s, in); err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(in, out) != 1 {
		return errWrongEcho
	}
	return nil
}
