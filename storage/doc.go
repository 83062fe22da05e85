// Package storage is the one database of a profile: Badger, encrypted at rest, behind transactions that are durable when
// they are said to be.
//
// Open gives a *DB. View reads a snapshot. Update runs a function and returns when what it wrote has been synced to disk;
// Submit does the same without waiting. Cache is for what may be lost: it is seen at once and reaches the disk with the
// next durable write, or a few seconds later by itself.
//
// One committer runs waiting functions one after another, each on its own overlay, and commits many overlays as one Badger
// transaction with one sync, or as one record of a journal if they are small. An error, a panic or too many writes discard
// that overlay alone. What a function reads includes its own writes and those of all overlays before it. Callbacks run
// after the sync, in the order of submission.
//
// The package knows bytes only; each domain package owns a key prefix and its own encoding. It is the only one that
// imports Badger.
//
// Concurrency: all methods of DB may be called from any goroutine. A Tx belongs to the function it was given to and ends
// with it. Neither a function given to Update, Submit or Cache nor a callback may wait for another Update: they run on the
// committer, which would wait for itself. Submitting from them is fine.
//
// Why it is built so stands in DESIGN.md beside this file.
package storage
