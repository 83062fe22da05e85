package text

import "unicode"

// scriptSet is a set of groups of scripts that are written together.
type scriptSet uint8

// The groups of UTS 39 "highly restrictive": what each lets stand beside Latin.
const (
	groupJapanese scriptSet = 1 << iota // Latin, Han, Hiragana, Katakana
	groupChinese                        // Latin, Han, Bopomofo
	groupKorean                         // Latin, Han, Hangul
	groupSingle                         // one script alone
)

// checkScripts holds a name to UTS 39 §5.2 "highly restrictive" with §5.3 (one system of digits): every letter of one script,
// or of Latin with one of the three East Asian combinations. Characters of no script (Common, Inherited) go with any.
func checkScripts(s string) Reason {
	groups := groupJapanese | groupChinese | groupKorean | groupSingle
	var single *unicode.RangeTable
	zero := rune(-1) // the digit zero of the decimal digits met so far
	for _, r := range s {
		if unicode.Is(unicode.Nd, r) {
			z := r - rune(digit(r))
			if zero >= 0 && zero != z {
				return ReasonMixed
			}
			zero = z
		}
		script := scriptOf(r)
		if script == nil {
			continue
		}
		if single != nil && single != script {
			groups &^= groupSingle
		}
		single = script
		groups &= groupsOf(script)
		if groups == 0 {
			return ReasonMixed
		}
	}
	return ""
}

// groupsOf says which groups have the script. Every script is in groupSingle; checkScripts drops that at the second script.
func groupsOf(t *unicode.RangeTable) scriptSet {
	switch t {
	case unicode.Latin, unicode.Han:
		return groupJapanese | groupChinese | groupKorean | groupSingle
	case unicode.Hiragana, unicode.Katakana:
		return groupJapanese | groupSingle
	case unicode.Bopomofo:
		return groupChinese | groupSingle
	case unicode.Hangul:
		return groupKorean | groupSingle
	default:
		return groupSingle
	}
}

// scriptOf returns the script of r, nil for characters of none. The prolonged sound marks and the ideographic zero have the
// script Common in the tables but extensions that bind them (Script_Extensions), which Go's tables lack: a ー between Latin
// letters would pass for a hyphen.
func scriptOf(r rune) *unicode.RangeTable {
	switch {
	case r < 0x80:
		if unicode.IsLetter(r) {
			return unicode.Latin
		}
		return nil
	case r == 'ー':
		return unicode.Katakana
	case unicode.In(r, unicode.Han, unicode.Latin):
		if unicode.Is(unicode.Han, r) {
			return unicode.Han
		}
		return unicode.Latin
	case unicode.In(r, unicode.Common, unicode.Inherited):
		return nil
	}
	for _, t := range unicode.Scripts {
		if unicode.Is(t, r) {
			return t
		}
	}
	return nil
}

// digit returns the value of a decimal digit. The tables keep every system in a run of ten that begins at its zero, and runs
// that touch (the mathematical digits) are refused by PRECIS before this is asked.
func digit(r rune) int {
	lo := r
	for unicode.Is(unicode.Nd, lo-1) && r-lo < 9 {
		lo--
	}
	return int(r - lo)
}
