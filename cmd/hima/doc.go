// Hima is a messenger without a provider: this program is the node, and the commands that speak to it.
//
// Here are verbs and flags only. A command builds a request, calls the node through internal/control and prints the
// answer; what a word means is decided in the node. Two commands run nodes instead of speaking to one: "node run" and
// "demo". Commands that need the node start it in the background by running this program again.
//
// The package never knows anything below internal/daemon and internal/control; all words it prints come from the
// catalogues of internal/text, and everything another person wrote passes text.Message or text.OneLine in view.go before
// it reaches a terminal.
//
// The main type is app: one run of the program, with its streams, its flags and its language. It belongs to the
// goroutine of the command; chat, demo and watch say themselves what their other goroutines may touch.
//
// Streams: prompts go to the terminal, results to stdout, and all else to stderr after "hima: error:", "hima: warning:"
// or "hima: hint:". Exit codes are listed in errors.go and in docs/cli.md, which "hima internal docs" writes from the
// commands themselves.
package main

//go:generate go run . internal docs ../../docs
