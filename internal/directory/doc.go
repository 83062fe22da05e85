// Package directory is what a node knows of others: account records, which device belongs to whom, where a device was
// last met, and who is on this LAN.
//
// The newest account record of an account decides which of its devices count, and a lower one is never accepted again
// (R11). Of people on the LAN the package knows what they say of themselves over /hima/lan/1; that a device belongs to an
// account is proven, names are only claimed.
//
// It never knows what an entry is, who is a contact (it asks Config.Keep), or what is shown to whom. It is pure caching
// besides the records: losing an address costs a little time, never a message.
//
// The main type is [Directory]. New reads a little and starts nothing; Run follows the node's events and asks people on
// the LAN, and returns after its goroutines ended. All methods may be called from any goroutine, also inside a
// transaction; those that wait for the disk take a context and must not be called inside one.
//
// Specification: docs/spec/identity.md, sections "Account record" and "/hima/lan/1".
package directory
