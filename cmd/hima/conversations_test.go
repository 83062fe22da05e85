package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What is shown of the last message is made safe before it is coloured, not after: colours are control characters too.
func TestLastLineInColour(t *testing.T) {
	a := testApp(t)
	a.color = true
	last := func(kind, said string) string {
		row := a.conversationRow(conversationView{Kind: kindGroup, Name: "tea", Last: &messageView{Kind: kind, Text: said, AuthorName: "bob"}}, time.Now())
		return row[len(row)-1]
	}
	require.Equal(t, "bob: \x1b[2m"+a.t("kind.unsupported")+"\x1b[0m", last("unheard of", ""))
	require.Equal(t, "bob: two lines", last("text", "two\x1b\nlines"))
}
