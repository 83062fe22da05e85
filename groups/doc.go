// Package groups is what many do together: who is in a group, under which keys they write, and how somebody comes in.
//
// A group is a conversation whose control entries are acts. This package reads and writes them, folds them with package
// roster, keeps the epoch keys, judges what may come in and who may have what, and knows what is not state of a group but
// said between two accounts: invitations, applications, refusals (R27).
//
// It never knows histories, contacts or names of people, nor how bytes travel: entries are kept and carried by package
// replica, which asks this package through the messenger.
//
// The main type is [Groups]. Its methods may be called from any goroutine; those with a transaction run inside it. The
// folded rosters are cached in memory, a View of the last committed state for readers and one per uncommitted change for
// the committer (see cache.go). Constructors start nothing: what goes on by itself lives inside Run.
//
// Specification: docs/spec/groups.md.
package groups
