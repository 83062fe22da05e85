// Package text makes words safe and finds the right ones.
//
// It has three duties. It decides what a username is (Username). It neutralises what other people wrote before it is
// kept or shown (Nickname, OneLine, Message), so that no peer can move the cursor of a terminal, reverse the reading
// direction of what follows, or hide text in characters nobody sees. And it holds the catalogues of what hima says
// itself, in English and simplified Chinese (Catalogue).
//
// It never knows accounts, entries, files of a profile, or the network: it sees strings and gives back strings.
//
// All functions are pure and may be called from any goroutine; a Catalogue is immutable after NewCatalogue.
//
// The rules, with the version of the Unicode tables they were checked against, are written in docs/spec/names.md.
package text
