// Package directory is what a node knows of others: account and device records, which device belongs to whom, where a
// device was last met, who is on this LAN, which networks were joined, and who has which name there.
//
// The newest account record of an account decides which of its devices count, and a lower one is never accepted again
// (R11). Of people on the LAN the package knows what they say of themselves over /hima/lan/1; that a device belongs to an
// account is proven, names are only claimed. On a network names are stamped by its bootstrap nodes, first come first
// served (R19).
//
// It never knows what an entry is, who is a contact (it asks Config.Keep), or what is shown to whom. It is pure caching
// besides the own records, networks and names: losing an address costs a little time, never a message. No look-up is on
// the way of a message to somebody whose address or mailbox is known.
//
// The main types are [Directory], for a user's node, and [Register], for a bootstrap node. A Directory is made of parts
// with a lock each: the address book and records (book.go, records.go, devices.go), the LAN (lan.go, nearby.go), joined
// networks (networks.go, attend.go), own records (owndevice.go, publish.go), what contacts do for each other (tend.go),
// look-ups (lookup.go) and names (names.go, search.go). New reads a little and starts nothing; Run follows the node's
// events, asks people on the LAN, joins the networks and publishes, and returns after its goroutines ended. All methods may
// be called from any goroutine; those of records and the book also inside a transaction; those that wait for the disk or
// the network take a context and must not be called inside one.
//
// Specification: docs/spec/identity.md, sections "Account record" and "/hima/lan/1"; docs/spec/network.md; docs/spec/names.md,
// from "Claims" on; docs/spec/records.md.
package directory
