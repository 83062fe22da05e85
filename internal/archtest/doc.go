// Package archtest holds the shape of the program in tests: which package may import which, what only one package may
// touch, and how large and how clean a file may be. It has no code of its own and nothing imports it.
//
// The table in imports_test.go is the one in docs/architecture.md; a package that stands in neither fails here, so that a
// new one is placed on purpose. The tests read source files only, of every platform and build tag, and need neither
// network nor git.
package archtest
