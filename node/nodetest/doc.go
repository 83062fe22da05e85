// Package nodetest makes nodes for tests: on a simulated network in virtual time, or on the loopback interface.
//
// [New] is used inside a testing/synctest bubble. It gives real nodes (libp2p over QUIC) whose packets travel through
// a simulated network with links that can be cut, healed and slowed, and a simulated LAN discovery in place of mDNS;
// an hour of their time costs a second. Everything ends with the test.
//
// [Loopback] is used outside of a bubble and gives nodes that speak TCP over 127.0.0.1.
//
// The package knows nothing above package node. All methods may be called from any goroutine of the bubble.
package nodetest
