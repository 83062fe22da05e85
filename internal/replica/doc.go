// Package replica keeps the entries of all conversations and brings them to the same state on two devices: it is the
// entry store and the protocol /hima/sync/1 (docs/spec/sync.md). Reasons for its choices stand in DESIGN.md beside it.
//
// The main type is Replica. Its store half (Append, Entry, Erase, Heads, ...) works on a *storage.Tx that the caller
// brings, needs no network, and is what messenger builds on. Its session half runs one stream per connected device:
// hello, digests, heads, runs, acknowledgements, receipts; the stream stays open and is the live road.
//
// What it never knows: what an entry says, who is a contact, what a user sees. Who may read a conversation it asks of
// Members, whether an entry may come in of Gate, and what came in it tells Hooks inside the same transaction, so that
// an event is stored together with the change it tells of.
//
// Concurrency: every method is safe for concurrent use. Hooks and Gate run inside storage transactions, one at a time;
// they must not call back into methods that wait for a commit (Open, Take, Run). A session has one goroutine that reads
// and one that writes; its state is owned by one mutex (see session). Constructors start nothing: the goroutines live
// inside Run and end before it returns.
package replica
