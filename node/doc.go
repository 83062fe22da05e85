// Package node is hima's network: one libp2p host, spoken to in device IDs.
//
// It opens and accepts streams, keeps addresses of devices, dials them, tells who is connected, finds nodes on the
// LAN by mDNS, and notices that the machine's network changed. On the Internet it keeps connections to bootstrap nodes,
// is reached through their relays, makes relayed connections direct, and takes part in a table of records ([DHT]) for each
// network. It never knows entries, accounts or contacts: a peer is a device key and nothing more.
//
// The main type is [Node]. New opens the listening sockets and starts no goroutine of this package; Run does the
// watching and returns when its context ends; Close ends the host. All methods may be called from any goroutine, also
// before Run and after Close (they then fail with [ErrClosed]).
//
// Nothing above this package sees a libp2p type: streams are [Stream], peers are identity.DeviceID, addresses are
// multiaddr strings. The one exception is [Config].Host, by which package nodetest puts a node on a simulated network.
//
// Why it is as it is, and the traps, stand in node/DESIGN.md.
package node
