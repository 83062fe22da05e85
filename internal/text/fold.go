package text

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

const (
	// MaxFoldedName bounds what FoldName returns, in bytes.
	MaxFoldedName = 512
	// maxFoldInput bounds what it looks at: four times the longest name of a group.
	maxFoldInput = 1 << 10
)

// FoldName brings a name of any text, as a group's, into the form under which it is searched and compared: what is not
// drawn left out, NFKC, case folded, blanks as single spaces. Two names are the same exactly if their folded forms are
// equal bytes, and FoldName(FoldName(s)) = FoldName(s). A name with nothing in it, too long or not UTF-8 is "": it equals
// nothing and cannot be searched.
func FoldName(s string) string {
	if len(s) > maxFoldInput || !utf8.ValidString(s) {
		return ""
	}
	// Folding may bring together what composes, and composing what folds.
	for range 8 {
		next := strings.Join(strings.Fields(cases.Fold().String(norm.NFKC.String(filter(s, false)))), " ")
		if next == s {
			break
		}
		s = next
	}
	if len(s) > MaxFoldedName {
		return ""
	}
	return s
}
