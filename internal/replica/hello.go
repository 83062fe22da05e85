package replica

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/storage"
)

// version is the only version of the protocol so far.
const version = 1

const (
	// helloTimeout bounds the hello of both sides.
	helloTimeout = 10 * time.Second
	// probeTimeout is how long an older session with the same device may take to show that it lives.
	probeTimeout = 1500 * time.Millisecond
)

// errDuplicate: the other session of the pair lives.
var errDuplicate = errors.New("there is another session with this device")

// greet exchanges hellos, admits the other side and registers the session. On an error the stream is ended.
func (r *Replica) greet(ctx context.Context, st *node.Stream, outbound bool) (*session, error) {
	s, reason, err := r.hello(ctx, st, outbound, false)
	if err == nil {
		reason, err = r.register(ctx, s)
	}
	if err == nil {
		return s, nil
	}
	r.refuseStream(st, reason)
	return nil, err
}

// refuseStream ends a stream that becomes no session.
func (r *Replica) refuseStream(st *node.Stream, reason pb.Bye_Reason) {
	if reason != pb.Bye_REASON_UNSPECIFIED {
		_ = st.SetWriteDeadline(time.Now().Add(time.Second))
		bye := &pb.Frame{Of: &pb.Frame_Bye{Bye: &pb.Bye{Reason: reason}}}
		if wire.Write(st, wire.MaxSyncFrame, bye) == nil && st.CloseWrite() == nil {
			// The other side reads the reason and closes; a reset might overtake it.
			_ = st.SetReadDeadline(time.Now().Add(time.Second))
			var drop [64]byte
			for err := error(nil); err == nil; {
				_, err = st.Read(drop[:])
			}
		}
	}
	st.Reset()
}

func (r *Replica) hello(ctx context.Context, st *node.Stream, outbound, moves bool) (*session, pb.Bye_Reason, error) {
	stop := context.AfterFunc(ctx, st.Reset)
	defer stop()
	_ = st.SetDeadline(time.Now().Add(helloTimeout))
	own, ok := r.cfg.Records.Record(r.cfg.Account)
	if !ok {
		return nil, pb.Bye_REASON_CLOSING, errors.New("no own account record")
	}
	mine := &pb.Hello{
		Versions:      []uint32{version},
		AccountRecord: own.Raw(),
		Certificate:   r.cfg.Certificate.Raw(),
		TimeMs:        r.cfg.Now().UnixMilli(),
		Agent:         r.cfg.Agent,
		Moves:         moves,
	}
	begun := time.Now()
	if err := wire.Write(st, wire.MaxSyncFrame, &pb.Frame{Of: &pb.Frame_Hello{Hello: mine}}); err != nil {
		return nil, 0, fmt.Errorf("writing hello: %w", err)
	}
	rd := bufio.NewReaderSize(st, readBuffer)
	var f pb.Frame
	if err := wire.Read(rd, wire.MaxSyncFrame, &f); err != nil {
		return nil, 0, fmt.Errorf("reading hello: %w", err)
	}
	if bye := f.GetBye(); bye != nil {
		return nil, 0, byeError(bye.Reason)
	}
	theirs := f.GetHello()
	if theirs == nil {
		return nil, pb.Bye_REASON_PROTOCOL, fmt.Errorf("reading hello: another frame: %w", ErrProtocol)
	}
	if !slices.Contains(theirs.Versions, version) {
		return nil, pb.Bye_REASON_VERSION, fmt.Errorf("no version in common: %w", ErrProtocol)
	}
	s := r.newSession(st, st.Info(), rd, outbound)
	s.moved = theirs.Moves && !outbound
	s.info.Skew = skew(theirs.TimeMs, r.cfg.Now()) + time.Since(begun)/2
	if reason, err := r.admit(ctx, s, theirs); err != nil {
		return nil, reason, err
	}
	_ = st.SetDeadline(time.Time{})
	return s, 0, nil
}

// maxSkew bounds what another clock is believed to differ; beyond it arithmetic would run over.
const maxSkew = 100 * 365 * 24 * time.Hour

func skew(theirs int64, now time.Time) time.Duration {
	return min(max(time.UnixMilli(theirs).Sub(now), -maxSkew), maxSkew)
}

// admit checks who the other side is: the certificate names its transport key, the account's newest record lists it.
func (r *Replica) admit(ctx context.Context, s *session, h *pb.Hello) (pb.Bye_Reason, error) {
	cert, err := identity.ParseCertificate(h.Certificate)
	if err != nil {
		return pb.Bye_REASON_PROTOCOL, fmt.Errorf("checking hello: %w: %w", ErrNotAdmitted, err)
	}
	if cert.Device != s.st.Remote() {
		return pb.Bye_REASON_PROTOCOL, fmt.Errorf("checking hello: certificate of another device: %w", ErrNotAdmitted)
	}
	rec, err := identity.ParseAccountRecord(h.AccountRecord)
	if err != nil {
		return pb.Bye_REASON_PROTOCOL, fmt.Errorf("checking hello: %w: %w", ErrNotAdmitted, err)
	}
	if rec.Account != cert.Account {
		return pb.Bye_REASON_PROTOCOL, fmt.Errorf("checking hello: record of another account: %w", ErrNotAdmitted)
	}
	s.peer = Peer{Account: cert.Account, Device: cert.Device}
	s.info.Peer = s.peer
	s.cert, s.record = cert, rec
	if s.stranger, err = r.isStranger(cert.Account); err != nil {
		return pb.Bye_REASON_CLOSING, err
	}
	known, have := r.cfg.Records.Record(cert.Account)
	before := known
	if !s.stranger || have {
		newest, err := r.cfg.Records.Admit(ctx, h.AccountRecord)
		if err != nil {
			return pb.Bye_REASON_CLOSING, fmt.Errorf("keeping account record: %w", err)
		}
		rec, known = newest, newest
		r.cfg.Records.Seen(cert, s.info.Addr, r.cfg.Now())
	}
	if !rec.Lists(cert.Device) {
		return pb.Bye_REASON_REVOKED, fmt.Errorf("device %s is not listed by its account: %w", cert.Device.Short(), ErrNotAdmitted)
	}
	if have && identity.Supersedes(s.record, known) {
		// The other side lacks a record of its own, as after a restore (R11).
		s.push(&pb.Frame{Of: &pb.Frame_Record{Record: &pb.Record{AccountRecord: known.Raw()}}})
	}
	if have && forgets(s.record, before) {
		// It was made anew with the recovery phrase alone, and may want to know of the devices it has forgotten (R21).
		s.push(&pb.Frame{Of: &pb.Frame_Record{Record: &pb.Record{AccountRecord: before.Raw()}}})
	}
	return 0, nil
}

// forgets says whether a record is newer than another and says nothing of a device that stands there.
func forgets(newer, older identity.AccountRecord) bool {
	if !identity.Supersedes(older, newer) {
		return false
	}
	for _, c := range older.Devices {
		if !newer.Lists(c.Device) && !newer.Revokes(c.Device) {
			return true
		}
	}
	return false
}

func (r *Replica) isStranger(account identity.AccountID) (bool, error) {
	if account == r.cfg.Account {
		return false, nil
	}
	stranger := true
	err := r.view(func(tx *storage.Tx) error {
		shared, err := r.cfg.Members.Shared(tx, account)
		stranger = len(shared) == 0
		return err
	})
	return stranger, err
}

// register makes the session the one of its pair. Of two sessions the one that the smaller device opened lives; of two
// that the same device opened, the newer: it opened a second one because the first is no good. Both sides see the same.
func (r *Replica) register(ctx context.Context, s *session) (pb.Bye_Reason, error) {
	for {
		other, err := r.streams.add(s, r.cfg.Limits)
		if err != nil {
			return pb.Bye_REASON_BUSY, err
		}
		if other == nil {
			return 0, nil
		}
		if other.opener() != s.opener() && other.opener().Less(s.opener()) && other.alive(ctx) {
			return pb.Bye_REASON_DUPLICATE, errDuplicate
		}
		if s.moved {
			s.moved = false
			if other.moving.Load() && r.self.Less(s.peer.Device) {
				return pb.Bye_REASON_DUPLICATE, errDuplicate // both move: the one that the smaller opens counts
			}
			return r.adopt(ctx, other, s)
		}
		other.end(pb.Bye_REASON_DUPLICATE, errDuplicate)
		select {
		case <-other.gone:
		case <-ctx.Done():
			return pb.Bye_REASON_CLOSING, ctx.Err()
		}
	}
}

// byeError says what a reason means for the one who is told it.
func byeError(reason pb.Bye_Reason) error {
	switch reason {
	case pb.Bye_REASON_DUPLICATE, pb.Bye_REASON_MOVED:
		return errDuplicate
	case pb.Bye_REASON_BUSY:
		return fmt.Errorf("told by the other side: %w", ErrBusy)
	case pb.Bye_REASON_REVOKED:
		return fmt.Errorf("told by the other side: %w", ErrNotAdmitted)
	case pb.Bye_REASON_PROTOCOL, pb.Bye_REASON_VERSION:
		return fmt.Errorf("told by the other side (%s): %w", reason, ErrProtocol)
	}
	return fmt.Errorf("the other side closed: %w", ErrClosed)
}
