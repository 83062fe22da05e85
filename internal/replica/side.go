package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
)

// Side has something to say to the devices of accepted contacts beside the entries: where it takes its mail.
type Side interface {
	// Offer returns what a device is to be told, nil for nothing. It is asked once in each session that has a
	// conversation open, and again after PushOffer, on a goroutine of its own. Whether the peer is an accepted contact
	// is the Side's to know.
	Offer(ctx context.Context, p Peer) (*pb.MailOffer, error)
	// Offered takes what a device tells. The session reads nothing more until it returns; an error that is ErrProtocol
	// ends it.
	Offered(ctx context.Context, p Peer, o *pb.MailOffer) error
}

// Offers come once a session and when one-time prekeys were used up. Each may cost its receiver a commit.
const (
	offerPause = 2 * time.Second
	offerBurst = 16
)

func newOfferLimiter() *rate.Limiter { return rate.NewLimiter(rate.Every(offerPause), offerBurst) }

// PushOffer asks the Side anew what a device is to be told, if there is a session with it.
func (r *Replica) PushOffer(device identity.DeviceID) {
	if s := r.streams.get(device); s != nil {
		s.mu.Lock()
		s.offerLocked()
		s.mu.Unlock()
	}
}

// offerLocked lets the writer ask the Side, unless nothing is open yet: then open will. Called with mu held.
func (s *session) offerLocked() {
	if s.r.cfg.Side != nil && s.opened {
		s.offerDue = true
		s.poke()
	}
}

// offer asks the Side if it is due. What it answers may need the disk, so it is asked beside the writer, once at a time.
func (w *writer) offer(ctx context.Context) {
	s := w.s
	s.mu.Lock()
	due := s.offerDue && !s.offering
	if due {
		s.offerDue, s.offering = false, true
	}
	s.mu.Unlock()
	if !due {
		return
	}
	w.wg.Go(func() {
		o, err := s.r.cfg.Side.Offer(ctx, s.peer)
		f := &pb.Frame{Of: &pb.Frame_MailOffer{MailOffer: o}}
		if err == nil && o != nil && proto.Size(f) > wire.MaxSyncFrame {
			err = wire.ErrTooLarge
		}
		if err != nil {
			s.r.log.Warn("telling a device where mail is taken", "device", s.peer.Device.Short(), "error", err)
		}
		s.mu.Lock()
		if err == nil && o != nil {
			s.pushLocked(f)
		}
		s.offering = false
		s.mu.Unlock()
		s.poke()
	})
}

// handleOffer hands what the other side tells to the Side. A stranger has nothing to tell.
func (s *session) handleOffer(ctx context.Context, o *pb.MailOffer) error {
	if s.r.cfg.Side == nil || !s.befriended() {
		return s.tax()
	}
	if !s.offers.Allow() {
		return fmt.Errorf("too many offers: %w", ErrBusy)
	}
	err := s.r.cfg.Side.Offered(ctx, s.peer, o)
	if errors.Is(err, ErrProtocol) {
		return fmt.Errorf("reading where mail is taken: %w", err)
	}
	if err != nil {
		s.r.log.Warn("keeping where a device takes mail", "device", s.peer.Device.Short(), "error", err)
	}
	s.lastIn.Store(time.Now().UnixNano()) // the silence was ours
	return nil
}
