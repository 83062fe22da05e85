// Package e2e holds tests of the real program: the binary that users get, in processes of its own, spoken to by its command
// line only. It knows nothing of the packages below.
//
// TestTour pastes the tour of both READMEs. The TestNetlab tests need root and Linux: they put each node into a network
// namespace and run when HIMA_NETLAB is set, which .ci/run does.
package e2e
