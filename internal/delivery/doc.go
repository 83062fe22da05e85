// Package delivery decides when a device is tried again. It holds the one retry table of the program: per device that
// is owed something, or that is worth knowing online, the next try; and a bounded log of attempts, for `hima why`.
//
// It never knows what an entry says, nor how entries travel: it opens sessions through Sessions (package replica) and
// learns from it who is owed something. The main type is Delivery. All methods are safe for concurrent use; New starts
// nothing, Run dials and returns when its context ends and all dials have returned.
package delivery
