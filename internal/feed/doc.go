// Package feed makes and checks entries: the signed, chained records that conversations consist of.
//
// Everything that comes from the network passes [CheckRun], [CheckDetached], [CheckUnsigned] with [Run.Verify], or [CheckForkProof]. An [Entry] or a [Run]
// can come into being in no other way than by these, by an [Author], or from the own disk ([ParseStored], [Assemble]),
// so whoever holds one need not ask whether it was verified.
//
// The package is pure: it knows no network, no disk and no clock, and takes randomness only where a body is padded. It
// also does not know what an entry says, nor who is in a conversation: membership and revocation are judged above it.
//
// All values are safe for concurrent use as long as nobody changes the byte slices that were handed in: checked values
// keep the slices they were made from and never copy them.
//
// The format is written down in docs/spec/feed.md.
package feed
