package main

import "testing"

// TestUnknownIsNotRefused: a message of which nothing is known was refused by nobody; who waits for it goes on waiting.
func TestUnknownIsNotRefused(t *testing.T) {
	if rank("unknown") == 0 {
		t.Error("it counts as not taken")
	}
}
