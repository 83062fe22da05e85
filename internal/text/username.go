package text

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/secure/bidirule"
	"golang.org/x/text/secure/precis"
	"golang.org/x/text/unicode/bidi"
	"golang.org/x/text/unicode/norm"
)

// UnicodeVersion is the version of the Unicode tables the rules of this package are written for. Which characters
// exist, how they fold and which script they belong to depends on it, so two nodes with different tables could
// disagree about a name; docs/spec/names.md names the same version and a test holds both to the tables linked in.
const UnicodeVersion = "15.0.0"

const (
	// MaxUsernameRunes bounds a username in characters, after folding.
	MaxUsernameRunes = 32
	// MaxUsernameBytes bounds it in bytes, after folding.
	MaxUsernameBytes = 64

	// maxRawUsername bounds what is looked at before folding; folding never shrinks a name to a quarter.
	maxRawUsername = 4 * MaxUsernameBytes
	// maxHexName is the longest username made of hexadecimal digits only: longer ones look like an ID or its prefix.
	maxHexName = 19
)

// ErrBadUsername is wrapped by every error of Username; errors.As with *UsernameError gives the reason.
var ErrBadUsername = errors.New("bad username")

// Reason says in one word why a username was refused. Catalogues have a sentence for each under "username.<reason>".
type Reason string

// Reasons for refusing a username.
const (
	ReasonEmpty     Reason = "empty"      // nothing left after folding
	ReasonTooLong   Reason = "too-long"   // more than MaxUsernameRunes or MaxUsernameBytes
	ReasonCharacter Reason = "character"  // a character that usernames do not have
	ReasonEdge      Reason = "edge"       // begins or ends with punctuation, or doubles it
	ReasonMixed     Reason = "mixed"      // scripts or digits that are not written together
	ReasonMarks     Reason = "marks"      // combining marks that stack up or hide
	ReasonDirection Reason = "direction"  // breaks the rule for right-to-left names (RFC 5893)
	ReasonLooksLike Reason = "looks-like" // could be read as an ID
	ReasonReserved  Reason = "reserved"   // a word hima uses itself
)

// UsernameError is the error of Username: which rule was broken.
type UsernameError struct{ Reason Reason }

// Error gives the English sentence; faces look up the reason in their catalogue instead.
func (e *UsernameError) Error() string {
	return fmt.Sprintf("checking username: %s", reasonText(e.Reason))
}

// Unwrap makes errors.Is(err, ErrBadUsername) true.
func (e *UsernameError) Unwrap() error { return ErrBadUsername }

func reasonText(r Reason) string {
	switch r {
	case ReasonEmpty:
		return "it is empty"
	case ReasonTooLong:
		return "it is longer than 32 characters or 64 bytes"
	case ReasonCharacter:
		return "only letters, digits and . _ - are allowed"
	case ReasonEdge:
		return "it must begin and end with a letter or digit, and . _ - must stand alone between them"
	case ReasonMixed:
		return "it mixes scripts or digits that are not written together"
	case ReasonMarks:
		return "it stacks or hides combining marks"
	case ReasonDirection:
		return "it mixes reading directions"
	case ReasonLooksLike:
		return "it looks like an ID"
	default:
		return "the word is reserved"
	}
}

// Username returns the canonical form of a username: PRECIS UsernameCaseMapped (RFC 8265: width and case folded, NFC)
// narrowed to letters, digits and single . _ - between them, in scripts that are written together (UTS 39 "highly
// restrictive"). Two names are the same exactly if their canonical forms are equal bytes, and
// Username(Username(s)) = Username(s). Single-script look-alikes are not caught: the account ID decides.
func Username(s string) (string, error) {
	refuse := func(r Reason) (string, error) { return "", &UsernameError{Reason: r} }
	if s == "" {
		return refuse(ReasonEmpty)
	}
	if len(s) > maxRawUsername {
		return refuse(ReasonTooLong)
	}
	if !utf8.ValidString(s) {
		return refuse(ReasonCharacter)
	}
	name, reason := foldUsername(s)
	if reason != "" {
		return refuse(reason)
	}
	for _, check := range []func(string) Reason{checkLength, checkCharacters, checkMarks, checkScripts, checkLooks} {
		if r := check(name); r != "" {
			return refuse(r)
		}
	}
	return name, nil
}

// foldUsername applies the PRECIS profile until nothing changes: folding once may expose another character to fold, and a
// canonical form that is not its own canonical form would let two nodes disagree.
//
// The profile is put together here instead of taken ready made, because the library's UsernameCaseMapped applies the bidi
// rule to every name that is not ASCII, and so refuses "2小"; RFC 8265 §3.3.2 asks for it only with right-to-left letters.
func foldUsername(s string) (string, Reason) {
	profile := precis.NewIdentifier(precis.FoldWidth, precis.LowerCase(), precis.Norm(norm.NFC))
	for range 4 {
		out, err := profile.String(s)
		if err != nil {
			return "", ReasonCharacter
		}
		if out == s {
			if rtl(s) && !bidirule.ValidString(s) {
				return "", ReasonDirection
			}
			return out, ""
		}
		s = out
	}
	return "", ReasonCharacter
}

// rtl tells whether s has a character that makes a name a right-to-left one (RFC 5893 §1.4).
func rtl(s string) bool {
	for _, r := range s {
		p, _ := bidi.LookupRune(r)
		if c := p.Class(); c == bidi.R || c == bidi.AL || c == bidi.AN {
			return true
		}
	}
	return false
}

func nameRune(r rune) bool {
	return unicode.IsLetter(r) || unicode.In(r, unicode.Nd, unicode.Mn, unicode.Mc) || namePunct(r)
}

func namePunct(r rune) bool { return r == '.' || r == '_' || r == '-' }

func checkLength(s string) Reason {
	if s == "" {
		return ReasonEmpty
	}
	if len(s) > MaxUsernameBytes || utf8.RuneCountInString(s) > MaxUsernameRunes {
		return ReasonTooLong
	}
	return ""
}

// checkCharacters narrows the PRECIS class, which also has all of ASCII's punctuation: names must survive in a shell,
// in a path and after a colon without quoting, and joiners are invisible.
func checkCharacters(s string) Reason {
	edge := true // the previous character was punctuation, or there was none
	for _, r := range s {
		if !nameRune(r) {
			return ReasonCharacter
		}
		if namePunct(r) && edge {
			return ReasonEdge
		}
		edge = namePunct(r)
	}
	if edge {
		return ReasonEdge
	}
	return ""
}

// checkMarks applies UTS 39 §5.4: no mark without a base, no run of more than four, none twice in a row, and no dot above a
// letter that already has one.
func checkMarks(s string) Reason {
	var base, last rune
	run := 0
	for _, r := range s {
		if !unicode.In(r, unicode.Mn, unicode.Mc) {
			base, last, run = r, r, 0
			continue
		}
		run++
		switch {
		case base == 0, namePunct(base), run > maxMarks, r == last:
			return ReasonMarks
		case r == '\u0307' && strings.ContainsRune("ijl\u0131\u0237", base):
			return ReasonMarks
		}
		last = r
	}
	return ""
}

// checkLooks refuses what elsewhere means something else: WHO on the command line may be a name, an ID, a link or "self".
func checkLooks(s string) Reason {
	if strings.HasPrefix(s, "hima1") || strings.HasPrefix(s, "12d3koo") || strings.HasPrefix(s, "16uiu2") {
		return ReasonLooksLike
	}
	hex := func(r rune) bool { return (r >= '0' && r <= '9') || (r >= 'a' && r <= 'f') }
	if len(s) > maxHexName && strings.IndexFunc(s, func(r rune) bool { return !hex(r) }) < 0 {
		return ReasonLooksLike
	}
	if reserved(s) {
		return ReasonReserved
	}
	return ""
}

// reserved holds the words hima gives a meaning of its own, and the device names that Windows refuses as folder names.
func reserved(s string) bool {
	stem, _, _ := strings.Cut(s, ".")
	switch stem {
	case "con", "prn", "aux", "nul":
		return true
	}
	if len(stem) == 4 && (stem[:3] == "com" || stem[:3] == "lpt") && stem[3] >= '0' && stem[3] <= '9' {
		return true
	}
	switch s {
	case "self", "me", "all", "everyone", "here", "hima", "system", "自己", "所有人", "全体成员", "系统", "系統":
		return true
	}
	return false
}
