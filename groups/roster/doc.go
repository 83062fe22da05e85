// Package roster says who is in a group, with which role, and under which epochs they may write: a pure function of the
// set of control entries that are known, the same for every member whatever arrived first (R25–R30).
//
// The entries form a graph: each names the control heads that its author held whole. An entry must be allowed by the
// fold of its own ancestors, and that answer never changes; what happened at the same time is then weighed by the rules
// of docs/spec/groups.md. Void entries stay in the graph and are told of, with the reason.
//
// The package never knows bytes, signatures, networks or clocks: an [Act] is an entry that was checked by others.
//
// The main type is [Roster]. It belongs to one goroutine; the [View] it gives may be read by any number.
//
// Specification: docs/spec/groups.md, part "Roster".
package roster
