package messenger

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

const (
	// batchJobs and batchBytes bound what one transaction of the sender writes. Bytes are those of bodies as they are
	// stored, padded; storage takes about a megabyte in one transaction.
	batchJobs  = 512
	batchBytes = 512 << 10
	// jobBytes is what a message costs beside its body: header, keys, its part of the rows.
	jobBytes = 400
	// batchesAhead is how many transactions are under way: one is synced while the next one is prepared.
	batchesAhead = 2
)

// sender writes texts. Calls that come while a commit is under way share the next one, so that the rows kept per
// conversation and per event are written once per batch; a single call waits for nobody.
type sender struct {
	m *Messenger

	mu      sync.Mutex // owns queue and running
	queue   []*sendJob
	running int
}

// sendJob is one call of Send.
type sendJob struct {
	account identity.AccountID // zero: a group
	conv    feed.ConversationID
	content []byte
	key     string // idempotency key
	time    time.Time

	message Message
	err     error
	done    chan struct{}
}

func newSender(m *Messenger) *sender { return &sender{m: m} }

// Send writes a text and returns when it is durable here.
func (m *Messenger) Send(ctx context.Context, in SendInput) (Message, error) {
	t, err := m.who.talk(in.Who)
	if err != nil {
		return Message{}, err
	}
	content, err := textContent(in.Text)
	if err != nil {
		return Message{}, err
	}
	if len(in.IdempotencyKey) > 256 {
		return Message{}, refuse(ErrInvalid, "an idempotency key is at most 256 bytes long", "")
	}
	job := &sendJob{
		account: t.account, conv: m.conversationOfTarget(&t), content: content, key: in.IdempotencyKey,
		time: m.env.now(), done: make(chan struct{}),
	}
	m.sender.add(job)
	select {
	case <-job.done:
		return job.message, job.err
	case <-ctx.Done():
		return Message{}, ctx.Err()
	}
}

// textContent checks a text and encodes it.
func textContent(s string) ([]byte, error) {
	switch {
	case len(s) > feed.MaxText:
		return nil, refuse(ErrTooLarge, fmt.Sprintf("a message has at most %d bytes, this one has %d", feed.MaxText, len(s)), "send it in parts")
	case text.Valid(s) != nil:
		return nil, refuse(ErrInvalid, "the text is not valid UTF-8", "")
	case strings.TrimSpace(text.Message(s)) == "":
		return nil, refuse(ErrInvalid, "there is nothing to send: the text is empty", "")
	}
	b, err := proto.Marshal(&pb.Text{Text: s})
	if err != nil {
		return nil, fmt.Errorf("encoding text: %w", err)
	}
	return b, nil
}

func (s *sender) add(j *sendJob) {
	s.mu.Lock()
	s.queue = append(s.queue, j)
	start := s.running < batchesAhead
	if start {
		s.running++
	}
	s.mu.Unlock()
	if start {
		s.next(s.m.env.db.SubmitHere)
	}
}

// next submits one batch of what waits. The slot it holds is passed on when the batch is done.
func (s *sender) next(submit func(func(*storage.Tx) error, func(error))) {
	s.mu.Lock()
	n, bytes := 0, 0
	for n < len(s.queue) && n < batchJobs {
		bytes += storedSize(len(s.queue[n].content))
		if n > 0 && bytes > batchBytes {
			break
		}
		n++
	}
	jobs := s.queue[:n:n]
	s.queue = s.queue[n:]
	if n == 0 {
		s.queue = nil
		s.running--
	}
	s.mu.Unlock()
	if n == 0 {
		return
	}
	submit(
		func(tx *storage.Tx) error { return s.write(tx, jobs) },
		func(err error) {
			for _, j := range jobs {
				if err != nil {
					j.message, j.err = Message{}, fmt.Errorf("sending: %w", err)
				}
				close(j.done)
			}
			s.next(s.m.env.db.Submit)
		})
}

// storedSize is about what a message of n bytes takes on disk; bodies are padded to few sizes (R8).
func storedSize(n int) int {
	for _, size := range []int{64, 256, 1 << 10, 4 << 10} {
		if n+19 <= size {
			return jobBytes + size
		}
	}
	return jobBytes + feed.MaxBody
}

// write writes a batch. A refusal of one job is its own; an error ends the whole batch, which then is not written.
func (s *sender) write(tx *storage.Tx, jobs []*sendJob) error {
	var drafts []replica.Draft
	var writing []*sendJob
	allowed := make(map[feed.ConversationID]error)
	templates := make(map[feed.ConversationID]replica.Draft)
	keys := make(map[[16]byte]*sendJob)
	var again []*sendJob
	for _, j := range jobs {
		// Set here: the function may run a second time after a failed group.
		j.err, j.message = nil, Message{}
		verdict, ok := allowed[j.conv]
		if !ok {
			templates[j.conv], verdict = s.template(tx, j)
			allowed[j.conv] = verdict
		}
		var refusal *Error
		if verdict != nil && !errors.As(verdict, &refusal) {
			return verdict
		}
		if j.err = verdict; verdict != nil {
			continue
		}
		if j.key != "" {
			if first := keys[idemHash(j)]; first != nil {
				again = append(again, j)
				continue
			}
			keys[idemHash(j)] = j
			done, err := s.repeated(tx, j)
			if err != nil {
				return err
			}
			if done {
				continue
			}
		}
		writing = append(writing, j)
		d := templates[j.conv]
		d.Content, d.Time = j.content, j.time
		drafts = append(drafts, d)
	}
	if len(drafts) > 0 {
		if err := s.append(tx, writing, drafts); err != nil {
			return err
		}
	}
	for _, j := range again {
		j.message, j.err = keys[idemHash(j)].message, keys[idemHash(j)].err
	}
	return nil
}

func (s *sender) append(tx *storage.Tx, jobs []*sendJob, drafts []replica.Draft) error {
	entries, err := s.m.write(tx, drafts...)
	if err != nil {
		return err
	}
	var r *renderer
	var row feedRow
	for i, j := range jobs {
		e := &entries[i]
		if r == nil || r.conv.id != e.Conversation {
			if r, err = s.m.renderer(tx, e.Conversation); err != nil {
				return err
			}
			if row, _, err = s.m.feeds.get(tx, e.Feed()); err != nil {
				return err
			}
		}
		if j.message, err = r.rendered(e, &row, arrival{}); err != nil {
			return err
		}
		if j.key == "" {
			continue
		}
		if err := s.remember(tx, j, row.local); err != nil {
			return err
		}
	}
	return nil
}

// template makes the draft that all texts of a batch in one conversation are filled into, or says why there is none.
func (s *sender) template(tx *storage.Tx, j *sendJob) (replica.Draft, error) {
	if !j.account.IsZero() {
		d := replica.Draft{Conversation: j.conv, Number: feed.Chat, Kind: feed.KindText}
		return d, s.allow(tx, j.conv, j.account)
	}
	if err := s.m.writable(tx, j.conv); err != nil {
		return replica.Draft{}, err
	}
	d, err := s.m.env.groups.Draft(tx, j.conv, feed.KindText, j.content)
	return d, groupRefusal(err)
}

// allow tells whether the owner may write in a conversation now.
func (s *sender) allow(tx *storage.Tx, conv feed.ConversationID, peer identity.AccountID) error {
	if err := s.m.writable(tx, conv); err != nil {
		return err
	}
	if conv == s.m.env.self {
		return nil
	}
	row, _, err := s.m.contacts.get(tx, peer)
	if err != nil {
		return err
	}
	switch {
	case row.Blocked:
		return refuse(ErrDenied, "you blocked this account", "`hima contact unblock` first")
	case row.State == pb.ContactState_STATE_CONTACT, row.State == pb.ContactState_STATE_ONE_WAY:
		return nil
	case row.State == pb.ContactState_STATE_ASKED && row.Out != nil && row.Out.State == RequestDeclined:
		return refuse(ErrNotContact, "your request was declined", "")
	case row.State == pb.ContactState_STATE_ASKED:
		return refuse(ErrWaitingForAccept, "your request was not accepted yet", "`hima contact requests` shows how far it got")
	case row.Cost.Messages > 0:
		// A temporary chat may be answered; whoever began it listens.
		return nil
	case row.In.waiting():
		return refuse(ErrNotContact, "this account waits for your answer", "`hima contact accept` first")
	}
	return refuse(ErrNotContact, "this account is not a contact", "`hima contact add` first")
}

// writeText writes one text in a running transaction.
func (s *sender) writeText(tx *storage.Tx, conv feed.ConversationID, msg string) (feed.Entry, error) {
	content, err := textContent(msg)
	if err != nil {
		return feed.Entry{}, err
	}
	if err := s.m.writable(tx, conv); err != nil {
		return feed.Entry{}, err
	}
	entries, err := s.m.write(tx, replica.Draft{Conversation: conv, Number: feed.Chat, Kind: feed.KindText, Content: content})
	if err != nil {
		return feed.Entry{}, err
	}
	return entries[0], nil
}

// idemHash names an idempotency key; the same key in two conversations is two keys.
func idemHash(j *sendJob) [16]byte {
	sum := sha256.Sum256(append(j.conv[:], j.key...))
	return [16]byte(sum[:16])
}

// repeated answers a job whose key was used within a day with the first message.
func (s *sender) repeated(tx *storage.Tx, j *sendJob) (bool, error) {
	hash := idemHash(j)
	b, ok, err := getRow(tx, append([]byte(keyIdem), hash[:]...))
	if err != nil || !ok || len(b) != 8+4+8 {
		return false, err
	}
	if int64(binary.BigEndian.Uint64(b)) < s.m.env.now().UnixMilli() {
		return false, nil
	}
	row, err := s.m.feeds.local(tx, localFeed(binary.BigEndian.Uint32(b[8:])))
	if err != nil {
		return false, err
	}
	e, err := s.m.env.feeds.Entry(tx, row.id, binary.BigEndian.Uint64(b[12:]))
	if errors.Is(err, replica.ErrNoEntry) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	r, err := s.m.renderer(tx, j.conv)
	if err != nil {
		return false, err
	}
	j.message, err = r.rendered(&e, &row, arrival{})
	return err == nil, err
}

func (s *sender) remember(tx *storage.Tx, j *sendJob, local localFeed) error {
	hash := idemHash(j)
	until := uint64(s.m.env.now().Add(idempotencyLife).UnixMilli())
	val := binary.BigEndian.AppendUint64(nil, until)
	val = binary.BigEndian.AppendUint32(val, uint32(local))
	val = binary.BigEndian.AppendUint64(val, j.message.Seq)
	if err := tx.Set(append([]byte(keyIdem), hash[:]...), val); err != nil {
		return err
	}
	end := binary.BigEndian.AppendUint64([]byte(keyIdemEnd), until)
	return tx.Set(append(end, hash[:]...), nil)
}

// forget removes idempotency keys whose day is over, some at a time.
func (s *sender) forget(tx *storage.Tx) error {
	var ends [][]byte
	now := uint64(s.m.env.now().UnixMilli())
	o := storage.ScanOptions{Prefix: []byte(keyIdemEnd), KeysOnly: true, Limit: 1000}
	err := tx.Scan(o, func(key, _ []byte) (bool, error) {
		if len(key) != len(keyIdemEnd)+8+16 {
			return false, errRow
		}
		if binary.BigEndian.Uint64(key[len(keyIdemEnd):]) >= now {
			return false, nil
		}
		ends = append(ends, key)
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, key := range ends {
		name := append([]byte(keyIdem), key[len(keyIdemEnd)+8:]...)
		b, ok, err := getRow(tx, name)
		if err != nil {
			return err
		}
		// The key may have been used again since.
		if ok && len(b) >= 8 && binary.BigEndian.Uint64(b) < now {
			if err := tx.Delete(name); err != nil {
				return err
			}
		}
		if err := tx.Delete(key); err != nil {
			return err
		}
	}
	return nil
}
