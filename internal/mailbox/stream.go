package mailbox

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/storage"
)

// Bounds of what one frame may ask for; docs/spec/mailbox.md has the same numbers.
const (
	maxItem    = identity.MaxMailItem
	maxPage    = 64 << 10 // bytes of items in one answer, unless the first alone is larger
	maxSecrets = 256      // of a watch or a renewal
	maxDone    = 256      // hashes
	maxFetch   = 256      // items in one answer
	itemAround = 32       // bytes that one item in an answer takes beside its own
)

// Timing of a stream.
const (
	// readTimeout is how long a client may be silent: it is expected to ask something every minute while it watches.
	readTimeout = 5 * time.Minute
	// writeTimeout is how long a client may take to read one answer.
	writeTimeout = 20 * time.Second
)

// pipelined is how many answers may wait for their turn: commits under way, for the most part.
const pipelined = 128

// stream is one client's stream. Two goroutines work on it: serve reads requests and begins what they ask for, write waits
// for each in order and answers. watched and rung are the hub's.
type stream struct {
	s       *Server
	stream  *node.Stream
	device  identity.DeviceID // for the rates; it is never written
	out     chan answer
	dead    chan struct{} // closed when nothing can be written any more
	bell    chan struct{} // one slot
	last    uint64        // ID of the newest request
	watched map[identity.InboxID]struct{}
	rung    map[identity.InboxID]struct{}
}

// answer makes the reply to a request when its turn has come; nil: the stream is to be ended.
type answer struct {
	id   uint64
	make func() *pb.MailboxReply
}

func code(c pb.MailboxReply_Code) func() *pb.MailboxReply {
	return func() *pb.MailboxReply { return &pb.MailboxReply{Code: c} }
}

// serve handles one stream.
func (s *Server) serve(raw *node.Stream) {
	st := s.newStream(raw, raw.Remote())
	if !s.enter(st) {
		return
	}
	defer s.leave(st)
	defer s.watch.remove(st)
	written := make(chan struct{})
	go func() {
		defer close(written)
		st.write()
	}()
	err := st.read()
	close(st.out)
	if err == nil { // the client said all it wanted: it still gets its answers
		<-written
		_ = raw.Close()
		return
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		s.log.Debug("ending a mailbox stream", "error", err)
	}
	raw.Reset()
	<-written
}

func (s *Server) newStream(raw *node.Stream, dev identity.DeviceID) *stream {
	return &stream{
		s: s, stream: raw, device: dev, out: make(chan answer, pipelined), dead: make(chan struct{}), bell: make(chan struct{}, 1),
		watched: map[identity.InboxID]struct{}{}, rung: map[identity.InboxID]struct{}{},
	}
}

// read takes requests until the stream ends.
func (st *stream) read() error {
	r := bufio.NewReaderSize(st.stream, 4<<10)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // whatever ends the writer ends what waits for room
		select {
		case <-st.dead:
		case <-ctx.Done():
		}
		cancel()
	}()
	for {
		if err := st.stream.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
			return fmt.Errorf("reading a request: %w", err)
		}
		var m pb.MailboxRequest
		if err := wire.Read(r, wire.MaxMailboxFrame, &m); err != nil {
			if err == io.EOF {
				return nil
			}
			return fmt.Errorf("reading a request: %w", err)
		}
		if m.Id <= st.last {
			return fmt.Errorf("request %d after %d: %w", m.Id, st.last, ErrProtocol)
		}
		st.last = m.Id
		f := st.handle(ctx, &m)
		if f == nil {
			return fmt.Errorf("waiting for room: %w", context.Cause(ctx))
		}
		select {
		case st.out <- answer{m.Id, f}:
		case <-st.dead:
			return fmt.Errorf("answering: %w", io.ErrClosedPipe)
		}
	}
}

// write answers in order, and tells of what came into watched inboxes between answers.
func (st *stream) write() {
	defer close(st.dead)
	for {
		var m *pb.MailboxReply
		select {
		case a, ok := <-st.out:
			if !ok {
				return
			}
			if m = a.make(); m == nil {
				st.stream.Reset()
				return
			}
			m.Id = a.id
			if m.Code != pb.MailboxReply_CODE_OK {
				st.s.refused.Add(1)
			}
		case <-st.bell:
			ids, more := st.s.watch.take(st, maxSecrets)
			if more {
				select {
				case st.bell <- struct{}{}:
				default:
				}
			}
			if len(ids) == 0 {
				continue
			}
			m = &pb.MailboxReply{Code: pb.MailboxReply_CODE_OK, Waiting: ids}
		}
		err := st.stream.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err == nil {
			err = wire.Write(st.stream, wire.MaxMailboxFrame, m)
		}
		if err != nil {
			st.stream.Reset()
			return
		}
	}
}

// handle begins what a request asks for. It returns nil only when ctx ended.
func (st *stream) handle(ctx context.Context, m *pb.MailboxRequest) func() *pb.MailboxReply {
	size, opens := 0, 0
	switch of := m.Of.(type) {
	case *pb.MailboxRequest_Deposit:
		size = len(of.Deposit.GetItem())
	case *pb.MailboxRequest_Open:
		opens = 1
	}
	if !st.s.rates.take(st.device, size, opens) {
		return code(pb.MailboxReply_CODE_BUSY)
	}
	switch of := m.Of.(type) {
	case *pb.MailboxRequest_Terms:
		return func() *pb.MailboxReply {
			return &pb.MailboxReply{Code: pb.MailboxReply_CODE_OK, Terms: st.s.terms().pb()}
		}
	case *pb.MailboxRequest_Open:
		return st.open(of.Open)
	case *pb.MailboxRequest_Deposit:
		return st.deposit(ctx, of.Deposit)
	case *pb.MailboxRequest_Watch:
		return st.watchAll(of.Watch.GetSecrets())
	case *pb.MailboxRequest_Fetch:
		return st.fetch(of.Fetch)
	case *pb.MailboxRequest_Done:
		return st.done(of.Done)
	case *pb.MailboxRequest_Close:
		return st.closeInbox(of.Close.GetSecret())
	case *pb.MailboxRequest_Renew:
		return st.renew(of.Renew.GetSecrets())
	}
	return code(pb.MailboxReply_CODE_BAD)
}

// wait submits f and returns how to wait for it.
func (st *stream) wait(f func(tx *storage.Tx) ([]change, error), then func() *pb.MailboxReply) func() *pb.MailboxReply {
	done := make(chan error, 1)
	st.s.submit(f, func(err error) { done <- err })
	return func() *pb.MailboxReply {
		if err := <-done; err != nil {
			st.s.log.Warn("keeping mail", "error", err)
			return &pb.MailboxReply{Code: pb.MailboxReply_CODE_FAILED}
		}
		return then()
	}
}

func (st *stream) open(m *pb.MailboxOpen) func() *pb.MailboxReply {
	secret, err := identity.InboxSecretFromBytes(m.GetSecret())
	kind := Kind(m.GetKind())
	if err != nil || (kind != Contact && kind != Request && kind != Slot && kind != Log) || len(m.Grant) > maxGrant {
		return code(pb.MailboxReply_CODE_BAD)
	}
	var answer pb.MailboxReply
	return st.wait(func(tx *storage.Tx) (did []change, err error) {
		answer.Code, answer.State, did, err = st.s.openInbox(tx, secret.ID(), kind, m.QuotaBytes, m.Grant)
		return did, err
	}, func() *pb.MailboxReply { return &answer })
}

func (st *stream) deposit(ctx context.Context, m *pb.MailboxDeposit) func() *pb.MailboxReply {
	id, err := identity.InboxIDFromBytes(m.GetInbox())
	if err != nil || len(m.Item) == 0 {
		return code(pb.MailboxReply_CODE_BAD)
	}
	if len(m.Item) > maxItem {
		return code(pb.MailboxReply_CODE_TOO_LARGE)
	}
	c, seen := st.mayDeposit(id, m)
	if c != pb.MailboxReply_CODE_OK {
		return code(c)
	}
	size := int64(len(m.Item))
	if st.s.gate.Acquire(ctx, size) != nil {
		return nil
	}
	hash := identity.ItemHash(m.Item)
	var out kept
	var log localInbox // in which a part was taken; 0: none
	share := func(l localInbox) bool {
		if log == 0 && st.s.shares.take(l, st.device, len(m.Item)) {
			log = l
		}
		return log != 0
	}
	done := make(chan error, 1)
	st.s.submit(func(tx *storage.Tx) (_ []change, err error) {
		if !seen { // perhaps it is opened by a request right before this one
			in, ok, err := loadInbox(tx, id)
			if err != nil {
				return nil, err
			}
			if out.code = st.s.judge(&in, id, m); ok && out.code != pb.MailboxReply_CODE_OK {
				return nil, nil
			}
		}
		out, err = st.s.deposit(tx, id, m.Item, hash, share)
		return []change{out.did}, err
	}, func(err error) {
		st.s.gate.Release(size)
		if log != 0 && (err != nil || !out.fresh) {
			st.s.shares.giveBack(log, st.device, int(size))
		}
		if err == nil && out.fresh {
			st.s.deposits.Add(1)
			st.s.watch.ring(id)
		}
		done <- err
	})
	return func() *pb.MailboxReply {
		if err := <-done; err != nil {
			st.s.log.Warn("keeping an item", "error", err)
			return &pb.MailboxReply{Code: pb.MailboxReply_CODE_FAILED}
		}
		if out.code != pb.MailboxReply_CODE_OK {
			return &pb.MailboxReply{Code: out.code}
		}
		if st.s.fail("before-receipt") != nil {
			return nil
		}
		receipt, err := identity.NewCustody(st.s.cfg.Key, identity.Custody{
			Inbox: id, Item: hash, Size: int(size), Until: time.UnixMilli(out.until), Time: st.s.now(),
		})
		if err != nil {
			st.s.log.Warn("signing a receipt", "error", err)
			return &pb.MailboxReply{Code: pb.MailboxReply_CODE_FAILED}
		}
		return &pb.MailboxReply{Code: pb.MailboxReply_CODE_OK, Custody: receipt.Raw()}
	}
}

// mayDeposit judges what costs no write. What kind an inbox is does not change, so that a snapshot is good enough; seen is
// false if the inbox is not in it.
func (st *stream) mayDeposit(id identity.InboxID, m *pb.MailboxDeposit) (c pb.MailboxReply_Code, seen bool) {
	var in inbox
	err := st.s.cfg.DB.View(func(tx *storage.Tx) (err error) {
		in, seen, err = loadInbox(tx, id)
		return err
	})
	if err != nil {
		st.s.log.Warn("reading an inbox", "error", err)
		return pb.MailboxReply_CODE_FAILED, false
	}
	if !seen {
		return pb.MailboxReply_CODE_OK, false
	}
	return st.s.judge(&in, id, m), true
}

// judge looks for the owner's secret of a slot, and the work for a request inbox.
func (s *Server) judge(in *inbox, id identity.InboxID, m *pb.MailboxDeposit) pb.MailboxReply_Code {
	switch in.kind {
	case Slot:
		if secret, err := identity.InboxSecretFromBytes(m.Secret); err != nil || secret.ID() != id {
			return pb.MailboxReply_CODE_DENIED
		}
	case Request:
		if bits := s.cfg.Limits.WorkBits; bits > 0 && !identity.CheckItemWork(id, m.Item, m.Work, bits) {
			return pb.MailboxReply_CODE_WORK
		}
	}
	return pb.MailboxReply_CODE_OK
}

func (st *stream) fetch(m *pb.MailboxFetch) func() *pb.MailboxReply {
	secret, err := identity.InboxSecretFromBytes(m.GetSecret())
	if err != nil {
		return code(pb.MailboxReply_CODE_BAD)
	}
	return func() *pb.MailboxReply { // when its turn has come, so that one page a stream is in memory
		items, more, c, err := st.s.page(secret.ID(), m.After, min(int(m.Max), maxFetch))
		if err != nil {
			st.s.log.Warn("reading an inbox", "error", err)
			return &pb.MailboxReply{Code: pb.MailboxReply_CODE_FAILED}
		}
		st.s.fetches.Add(uint64(len(items)))
		return &pb.MailboxReply{Code: c, Items: items, More: more}
	}
}

// page reads items after a cursor.
func (s *Server) page(id identity.InboxID, after uint64, max int) (items []*pb.MailboxItem, more bool, c pb.MailboxReply_Code, err error) {
	if max <= 0 {
		max = maxFetch
	}
	if after == 1<<64-1 {
		return nil, false, pb.MailboxReply_CODE_OK, nil
	}
	c, now, size := pb.MailboxReply_CODE_OK, s.now().UnixMilli(), 0
	err = s.cfg.DB.View(func(tx *storage.Tx) error {
		in, ok, err := loadInbox(tx, id)
		if err != nil {
			return err
		}
		if !ok {
			c = pb.MailboxReply_CODE_NO_INBOX
			return nil
		}
		prefix := localKey(keyItem, in.local, 0)
		o := storage.ScanOptions{Prefix: prefix, Start: itemKey(in.local, after+1)}
		return tx.Scan(o, func(k, v []byte) (bool, error) {
			if len(k) != len(prefix)+8 || len(v) < 8 {
				return false, fmt.Errorf("reading an item: %w", errStored)
			}
			until := int64(binary.BigEndian.Uint64(v))
			if until != 0 && until <= now {
				return true, nil
			}
			if n := len(v) - 8 + itemAround; len(items) == max || (len(items) > 0 && size+n > maxPage) {
				more = true
				return false, nil
			} else {
				size += n
			}
			if until == 0 {
				until = in.touched + s.cfg.Limits.InboxIdle.Milliseconds()
			}
			items = append(items, &pb.MailboxItem{Cursor: binary.BigEndian.Uint64(k[len(prefix):]), Item: v[8:], UntilMs: until})
			return true, nil
		})
	})
	return items, more, c, err
}

func (st *stream) done(m *pb.MailboxDone) func() *pb.MailboxReply {
	secret, err := identity.InboxSecretFromBytes(m.GetSecret())
	if err != nil || len(m.Items) > maxDone {
		return code(pb.MailboxReply_CODE_BAD)
	}
	for _, h := range m.Items {
		if len(h) != 32 {
			return code(pb.MailboxReply_CODE_BAD)
		}
	}
	var c pb.MailboxReply_Code
	return st.wait(func(tx *storage.Tx) ([]change, error) {
		var did change
		var err error
		c, did, err = st.s.done(tx, secret.ID(), m.Items)
		return []change{did}, err
	}, func() *pb.MailboxReply { return &pb.MailboxReply{Code: c} })
}

func (st *stream) closeInbox(raw []byte) func() *pb.MailboxReply {
	secret, err := identity.InboxSecretFromBytes(raw)
	if err != nil {
		return code(pb.MailboxReply_CODE_BAD)
	}
	var c pb.MailboxReply_Code
	return st.wait(func(tx *storage.Tx) ([]change, error) {
		var did change
		var err error
		c, did, err = st.s.closeInbox(tx, secret.ID())
		return []change{did}, err
	}, func() *pb.MailboxReply { return &pb.MailboxReply{Code: c} })
}

// secretsOf reads the secrets of a frame.
func secretsOf(raw [][]byte) ([]identity.InboxID, bool) {
	if len(raw) == 0 || len(raw) > maxSecrets {
		return nil, false
	}
	ids := make([]identity.InboxID, len(raw))
	for i, b := range raw {
		secret, err := identity.InboxSecretFromBytes(b)
		if err != nil {
			return nil, false
		}
		ids[i] = secret.ID()
	}
	return ids, true
}

func (st *stream) watchAll(raw [][]byte) func() *pb.MailboxReply {
	ids, ok := secretsOf(raw)
	if !ok {
		return code(pb.MailboxReply_CODE_BAD)
	}
	for _, id := range ids { // first watch, then look: what comes in between is told of
		if !st.s.watch.add(st, id, st.s.cfg.Limits.Watched) {
			return code(pb.MailboxReply_CODE_BUSY)
		}
	}
	return st.look(ids, true)
}

func (st *stream) renew(raw [][]byte) func() *pb.MailboxReply {
	ids, ok := secretsOf(raw)
	if !ok {
		return code(pb.MailboxReply_CODE_BAD)
	}
	return st.look(ids, false)
}

// look renews inboxes and says which are not there and, if asked, in which something waits.
func (st *stream) look(ids []identity.InboxID, waiting bool) func() *pb.MailboxReply {
	answer := &pb.MailboxReply{Code: pb.MailboxReply_CODE_OK}
	var stale []identity.InboxID
	now := st.s.now()
	err := st.s.cfg.DB.View(func(tx *storage.Tx) error {
		for _, id := range ids {
			in, ok, err := loadInbox(tx, id)
			if err != nil {
				return err
			}
			if !ok {
				answer.Missing = append(answer.Missing, id.Bytes())
				continue
			}
			if in.idle(now, min(renewEvery, st.s.idleAfter(&in)/4)) {
				stale = append(stale, id)
			}
			if waiting && in.items > 0 {
				answer.Waiting = append(answer.Waiting, id.Bytes())
			}
		}
		return nil
	})
	if err != nil {
		st.s.log.Warn("reading inboxes", "error", err)
		return code(pb.MailboxReply_CODE_FAILED)
	}
	if len(stale) == 0 {
		return func() *pb.MailboxReply { return answer }
	}
	return st.wait(func(tx *storage.Tx) ([]change, error) {
		for _, id := range stale {
			in, ok, err := loadInbox(tx, id)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			in.touched = now.UnixMilli()
			if err := saveInbox(tx, id, &in); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}, func() *pb.MailboxReply { return answer })
}
