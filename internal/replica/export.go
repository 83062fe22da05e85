package replica

import (
	"context"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Span is a range of consecutive entries of one feed.
type Span struct {
	Feed       feed.FeedID
	From, Last uint64
}

// ExportOptions bounds an export.
type ExportOptions struct {
	// Skip says up to which number entries of a feed are on their way already; nil: none are.
	Skip func(feed.FeedID) uint64
	// MaxBytes bounds the encoded runs and receipts together; 0: DefaultExportBytes. One run of an own feed always fits.
	MaxBytes int
}

// DefaultExportBytes leaves room in a mail (identity.MaxMailPlain) for what goes with runs.
const DefaultExportBytes = 56 << 10

// Export is what one device lacks, in the form in which other roads than a session carry it.
type Export struct {
	Peer     Peer
	Runs     []*pb.Run // signed
	Spans    []Span    // what the runs hold, in the same order
	Receipts [][]byte  // Signed receipts of this device that the other one may lack
	Knock    bool      // the first exchange with an account that has not answered: Token or Work is set
	Token    []byte
	Work     []byte
	More     bool // the bound left something out
	receipts []postedReceipt
}

type postedReceipt struct {
	conv feed.ConversationID
	seq  uint64
}

// Empty says that there is nothing to send.
func (e Export) Empty() bool { return len(e.Runs) == 0 && len(e.Receipts) == 0 }

// Export collects what a device lacks of this device's own feeds, oldest first and as far as Members let its account
// read it, and the receipts it may lack. Before it returns it is durable that the entries were offered (R1).
// ErrNotAdmitted: no account that shares a conversation has this device now.
func (r *Replica) Export(ctx context.Context, device identity.DeviceID, o ExportOptions) (Export, error) {
	return Export{}, ErrNotAdmitted
}

// Posted notes that somebody who is trusted to hand it over holds an export, so that its receipts are not exported
// again. Entries need no note: ExportOptions.Skip says where they are.
func (r *Replica) Posted(tx *storage.Tx, e Export) error { return nil }

// OwnReceipt returns this device's newest signed receipt of a conversation.
func (r *Replica) OwnReceipt(conv feed.ConversationID) ([]byte, bool) { return nil, false }

// ReceiptsDue lists the devices that lack this device's newest receipt of a conversation in which they wrote.
func (r *Replica) ReceiptsDue() ([]Peer, error) { return nil, nil }

// WatchOwed returns a channel that ticks after the answer of Owed or ReceiptsDue may have changed, and a function that
// ends it. There may be any number of them.
func (r *Replica) WatchOwed() (<-chan struct{}, func()) { return nil, func() {} }
