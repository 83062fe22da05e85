package main

import (
	"strings"
	"testing"

	"github.com/charmbracelet/x/ansi"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// typeKeys feeds keys and returns the lines sent and the other actions.
func typeKeys(e *editor, keys string) (lines []string, acts []action) {
	e.feed([]byte(keys), func(act action, line string) {
		if act == actEnter {
			lines = append(lines, line)
		}
		acts = append(acts, act)
	})
	return lines, acts
}

func TestEditor(t *testing.T) {
	for _, c := range []struct{ name, keys, line string }{
		{"plain", "hello\r", "hello"},
		{"chinese", "你好\r", "你好"},
		{"backspace takes a whole character", "你好\x7f们\r", "你们"},
		{"backspace takes a whole emoji", "ok👩‍👩‍👧\x7f!\r", "ok!"},
		{"backspace at the start", "\x7f\x7fa\r", "a"},
		{"left and insert", "ac\x1b[Db\r", "abc"},
		{"home and end", "bc\x1b[Ha\x1b[Fd\r", "abcd"},
		{"ctrl-A ctrl-E", "bc\x01a\x05d\r", "abcd"},
		{"delete", "abc\x1b[H\x1b[3~\r", "bc"},
		{"ctrl-U", "abc\x15d\r", "d"},
		{"ctrl-K", "abc\x1b[D\x0b\r", "ab"},
		{"ctrl-W", "one two  \x17three\r", "one three"},
		{"unknown keys are swallowed", "a\x1b[99;5~b\x1bOPc\x1b[1;5Cd\r", "abcd"},
		{"a paste keeps its lines", "\x1b[200~one\rtwo\nthree\x1b[201~!\r", "one\ntwo\nthree!"},
		{"tab is a space", "a\tb\r", "a b"},
		{"control characters are dropped", "a\x00\x02\x06\x10b\r", "ab"},
		{"invalid bytes are marked", "a\xffb\r", "a\uFFFDb"},
		{"joined where inserted", "e\u0301\r", "e\u0301"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var whole editor
			lines, _ := typeKeys(&whole, c.keys)
			require.Equal(t, []string{c.line}, lines)
			var single editor // every byte alone, as a slow line delivers them
			var got []string
			for i := range len(c.keys) {
				l, _ := typeKeys(&single, c.keys[i:i+1])
				got = append(got, l...)
			}
			require.Equal(t, []string{c.line}, got)
		})
	}
}

func TestEditorEnds(t *testing.T) {
	var e editor
	_, acts := typeKeys(&e, "\x04")
	require.Equal(t, []action{actEnd}, acts)
	_, acts = typeKeys(&e, "a\x04")
	require.Equal(t, []action{actEdit, actEdit}, acts, "ctrl-D in a line deletes")
	_, acts = typeKeys(&e, "\x03")
	require.Equal(t, []action{actInterrupt}, acts)
}

// TestEditorView: whatever is typed, the view fits and the cursor stands in it.
func TestEditorView(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e editor
		keys := rapid.SliceOf(rapid.SampledFrom([]string{
			"a", "你", "👩‍👩‍👧", "e\u0301", "\x7f", "\x1b[D", "\x1b[C", "\x1b[H", "\x1b[F", "\x17", " ", "\x1b[200~x\ny\x1b[201~", "\x0b",
		})).Draw(t, "keys")
		typeKeys(&e, strings.Join(keys, ""))
		cells := rapid.IntRange(4, 40).Draw(t, "cells")
		line, cursor := e.view(cells)
		if w := ansi.StringWidth(line); w > cells {
			t.Fatalf("%d cells in %d", w, cells)
		}
		if cursor < 0 || cursor > cells {
			t.Fatalf("cursor at %d of %d", cursor, cells)
		}
		if strings.ContainsAny(line, "\n\r\x1b") {
			t.Fatalf("control characters in %q", line)
		}
	})
}

func FuzzEditor(f *testing.F) {
	f.Add([]byte("hello\r\x1b[200~a\nb\x1b[201~\x7f"))
	f.Add([]byte("\x1b[\x1b[9999999999999999999999999999999999999999m"))
	f.Add([]byte("\xf0\x9f\x91\xc2\x85\r"))
	f.Fuzz(func(t *testing.T, keys []byte) {
		var e editor
		typeKeys(&e, string(keys))
		if e.cursor < 0 || e.cursor > len(e.clusters) {
			t.Fatalf("cursor %d of %d", e.cursor, len(e.clusters))
		}
	})
}
