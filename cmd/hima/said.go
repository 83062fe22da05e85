package main

import (
	"regexp"
	"strings"

	"hima/internal/text"
)

// What a node says is English: a sentence and what to do next. For other languages the catalogues have both under names made
// of the words themselves, so that node and faces need not agree on anything but the codes. A sentence that no catalogue has
// is shown as it is, behind what its code means.

// maxSaid bounds the name of a sentence; the longest that a node says are shorter.
const maxSaid = 120

// saidID is the name of a sentence in the catalogues, and the parts of it that differ from case to case (what somebody typed,
// an ID, a number), called A, B and so on.
func saidID(group, sentence string) (id string, values []any) {
	differs := regexp.MustCompile(`"(?:[^"\\]|\\.)*"|hima1[0-9a-z]+…?|\b[0-9]+\b`)
	for i, arg := range differs.FindAllString(sentence, -1) {
		values = append(values, string(rune('A'+i%26)), strings.Trim(arg, `"`))
	}
	var b strings.Builder
	for _, r := range strings.ToLower(differs.ReplaceAllString(sentence, " ")) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else if s := b.String(); s != "" && s[len(s)-1] != '_' {
			b.WriteByte('_')
		}
		if b.Len() >= maxSaid {
			break
		}
	}
	return group + "." + strings.Trim(b.String(), "_"), values
}

// translated gives a sentence of the node in the user's language; "" if there are no words for it.
func (a *app) translated(group, sentence string) string {
	if sentence == "" {
		return ""
	}
	id, values := saidID(group, text.OneLine(strings.TrimSpace(sentence), maxIDCells))
	return a.tIf(id, values...)
}
