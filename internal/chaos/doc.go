// Package chaos holds tests that treat the real program badly: the hima binary is built once, run as two nodes on the
// loopback interface, and killed, stopped, rolled back and flooded while messages flow. What it then must still
// promise is read through the local API, as any face reads it.
//
// It never looks into a node: not at its database, not at its memory. It has no code of its own beside the tests.
//
// HIMA_LONG=1 makes the long form run: two hundred kills instead of twenty.
package chaos
