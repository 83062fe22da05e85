package text

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"github.com/rivo/uniseg"
	"golang.org/x/text/unicode/norm"
)

const (
	// MaxNicknameCells is how wide a nickname may be on a screen: a list of people stays a list.
	MaxNicknameCells = 64
	// MaxBytes bounds any one text of a person. Entries have a lower bound of their own in package feed.
	MaxBytes = 32 << 10

	// maxMarks bounds combining marks on one base. UTS 39 names four; no living orthography stacks more.
	maxMarks = 4
	// maxJoins bounds zero-width joiners in one emoji: the longest in use (a family with skin tones) has four.
	maxJoins = 5
	// maxTags bounds the invisible tag characters behind a flag: subdivision codes have at most six and an end tag.
	maxTags = 8
	// bytesPerCell bounds how many bytes may hide in a cell when a line is cut: four marks on a four-byte base.
	bytesPerCell = 20
)

// ErrBadText is returned by Valid for text that is not UTF-8 or longer than MaxBytes.
var ErrBadText = errors.New("text is not valid UTF-8 or too long")

// Valid checks a text that its own author is about to say: it must be UTF-8 and within MaxBytes. What it holds is the
// author's choice; neutralising is up to who shows it.
func Valid(s string) error {
	if len(s) > MaxBytes || !utf8.ValidString(s) {
		return ErrBadText
	}
	return nil
}

// Nickname makes a name somebody else chose safe to keep and show: one line, NFC, no control, direction or hidden characters,
// at most MaxNicknameCells wide. It never fails; a name with nothing visible in it becomes "".
func Nickname(s string) string { return OneLine(s, MaxNicknameCells) }

// OneLine makes text safe to show in one line of at most maxCells cells. Blanks and line breaks become single spaces, what
// does not fit is replaced by an ellipsis. OneLine(OneLine(s, n), n) = OneLine(s, n).
func OneLine(s string, maxCells int) string {
	if maxCells <= 0 {
		return ""
	}
	// Nobody sees what is beyond this, and looking at it costs time. Nothing is lost: a cell holds bytesPerCell bytes.
	if limit := (maxCells + 1) * bytesPerCell * 4; len(s) > limit {
		s = s[:limit]
	}
	if plain(s, false) {
		s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ' ' }), " ")
		return cut(s, maxCells)
	}
	// NFC may take a character apart into more marks than are allowed, and filtering may bring a pair together: twice round
	// reaches a form that a third pass leaves alone (a fuzz target holds this).
	for range 4 {
		next := cut(strings.TrimRight(norm.NFC.String(filter(s, false)), " "), maxCells)
		if next == s {
			break
		}
		s = next
	}
	return s
}

// Message makes the text of a message safe to show: lines and tabs stay, other control characters, direction controls and
// hidden characters go. A line break of any kind becomes \n. Message(Message(s)) = Message(s).
func Message(s string) string {
	if plain(s, true) {
		return s
	}
	return filter(s, true)
}

// plain is the way out for most text there is: letters and printable ASCII, which no rule below changes.
func plain(s string, lines bool) bool {
	for _, r := range s {
		if !ordinary(r) && (!lines || (r != '\n' && r != '\t')) {
			return false
		}
	}
	return true
}

// ordinary tells characters that are drawn, stand alone and are their own NFC: the ranges that nearly all text is made of,
// so that it costs comparisons and no table look-ups.
func ordinary(r rune) bool {
	switch {
	case r < 0x7f:
		return r >= ' '
	case r >= 0x4e00 && r <= 0x9fff: // Han
		return true
	case r >= 0xc0 && r <= 0x24f: // Latin
		return true
	case r >= 0x410 && r <= 0x44f: // Cyrillic
		return true
	case r >= 0xac00 && r <= 0xd7a3: // Hangul
		return true
	}
	return (r >= 0x3041 && r <= 0x3096) || (r >= 0x30a1 && r <= 0x30fa) || // Kana
		(r >= 0x3001 && r <= 0x3003) || (r >= 0xff01 && r <= 0xff5e) // CJK punctuation, full-width forms
}

// cut shortens s to maxCells, and to the bytes that so many cells can hold: one grapheme may be made endless by joiners and
// prefixed signs, which a terminal then draws wider than any measure says.
func cut(s string, maxCells int) string {
	const tail = "…"
	if w := ansi.StringWidth(s); w > maxCells {
		s = trimTail(prefix(s, maxCells-1)) + tail
	}
	if limit := maxCells * bytesPerCell; len(s) > limit {
		end := limit - len(tail)
		for end > 0 && !utf8.RuneStart(s[end]) {
			end--
		}
		s = trimTail(s[:end]) + tail
	}
	return s
}

// prefix returns the graphemes at the beginning of s that fit into cells. ansi.Truncate does nearly the same, but it counts
// a digit before its variation selector as one cell where ansi.StringWidth counts two.
func prefix(s string, cells int) string {
	rest, state, end := s, -1, 0
	for rest != "" {
		var cluster string
		cluster, rest, _, state = uniseg.FirstGraphemeClusterInString(rest, state)
		if cells -= ansi.StringWidth(cluster); cells < 0 {
			break
		}
		end += len(cluster)
	}
	return s[:end]
}

// trimTail drops what must not stand before an ellipsis: a blank, and a joiner with nothing to join.
func trimTail(s string) string {
	return strings.TrimRightFunc(s, func(r rune) bool { return r == ' ' || r == zwj || r == zwnj || isTag(r) || isSelector(r) })
}

const (
	zwj      = '\u200d'
	zwnj     = '\u200c'
	textVS   = '\ufe0e'
	emojiVS  = '\ufe0f'
	keycap   = '\u20e3'
	flagBase = '\U0001f3f4'
	endTag   = '\U000e007f'
)

// filterState is what a rune's fate depends on.
type filterState struct {
	lines bool // \n and \t stay
	prev  rune // last rune written, 0 at the beginning
	base  rune // last rune written that is not a mark, selector or joiner; 0 if a mark has nothing to stand on
	marks int  // marks on base
	joins int  // joiners since the last rune outside an emoji sequence
	tags  int  // tag characters behind a black flag
}

// filter writes the runes of s that may be shown. Looking one rune ahead is enough to keep a joiner only between what it
// joins, so its output is a fixed point.
func filter(s string, lines bool) string {
	var b strings.Builder
	b.Grow(len(s))
	st := filterState{lines: lines}
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n <= 1 {
			n = 1 // one broken byte, one replacement
		}
		i += n
		if lines && r == '\r' && strings.HasPrefix(s[i:], "\n") {
			continue
		}
		if w := st.step(r, s[i:]); w >= 0 {
			b.WriteRune(w)
		}
	}
	out := b.String()
	if !lines {
		out = strings.TrimRight(out, " ")
	}
	return out
}

// step returns the rune to write for r, or -1 for none. rest is what follows.
func (st *filterState) step(r rune, rest string) rune {
	if r != ' ' && ordinary(r) {
		return st.start(r)
	}
	if w, ok := st.blank(r); ok {
		return w
	}
	switch {
	case r == zwj || r == zwnj:
		return st.joiner(r, rest)
	case isSelector(r):
		return st.selector(r, rest)
	case isTag(r):
		return st.tag(r, rest)
	case unicode.In(r, unicode.Mn, unicode.Mc, unicode.Me):
		return st.mark(r)
	case hidden(r):
		return -1
	case unicode.In(r, unicode.Co, unicode.Cs) || r&0xfffe == 0xfffe || (r >= 0xfdd0 && r <= 0xfdef):
		// Private use draws whatever the reader's font says, noncharacters are nobody's: both show as what they are, unknown.
		return st.start(utf8.RuneError)
	}
	return st.start(r)
}

func (st *filterState) start(r rune) rune {
	if !pictograph(r) {
		st.joins = 0
	}
	st.prev, st.base, st.marks, st.tags = r, r, 0, 0
	return r
}

// blank handles everything that moves the cursor without drawing, and the rest of category Cc.
func (st *filterState) blank(r rune) (rune, bool) {
	w := rune(0)
	switch {
	case r == '\n', r == '\r', r == '\u0085', r == '\u2028', r == '\u2029':
		w = '\n'
	case r == '\t':
		w = '\t'
	case r < ' ', r >= 0x7f && r < 0xa0:
		if r == '\v' || r == '\f' {
			w = ' '
			break
		}
		return -1, true
	case unicode.Is(unicode.Zs, r), r == '\u2800', isFiller(r): // the Braille blank and the fillers are letters that draw nothing
		w = r
		if r != '\u00a0' && r != '\u3000' {
			w = ' '
		}
	default:
		return 0, false
	}
	if !st.lines {
		if st.prev == 0 || st.prev == ' ' {
			return -1, true
		}
		w = ' '
	}
	st.prev, st.base, st.marks, st.joins, st.tags = w, 0, 0, 0, 0
	return w, true
}

// mark keeps at most maxMarks marks on a base, and none at the beginning of a line or after a blank, where it would sit on
// what hima itself wrote before.
func (st *filterState) mark(r rune) rune {
	if st.base == 0 || hidden(r) {
		return -1
	}
	if unicode.Is(unicode.Me, r) && r != keycap && st.marks > 0 {
		return -1
	}
	if st.marks++; st.marks > maxMarks {
		return -1
	}
	st.prev = r
	return r
}

// joiner keeps a zero-width joiner between two emoji and between letters of scripts that need it to spell (Persian, the
// Indic scripts); everywhere else it only makes two equal-looking texts differ.
func (st *filterState) joiner(r rune, rest string) rune {
	next, _ := utf8.DecodeRuneInString(rest)
	if st.prev == zwj || st.prev == zwnj || st.base == 0 {
		return -1
	}
	switch {
	case r == zwj && pictograph(st.base) && pictograph(next) && st.joins < maxJoins:
		st.joins++
	case joining(st.base) && joining(next) && unicode.IsLetter(next) && st.marks < maxMarks:
		st.marks++ // counted, so that a joiner cannot restart a flood
	default:
		return -1
	}
	st.prev = r
	return r
}

// selector keeps one variation selector: text or emoji style after what has both, an ideographic variant after a Han
// character.
func (st *filterState) selector(r rune, rest string) rune {
	if st.base == 0 || st.prev != st.base {
		return -1
	}
	key := strings.ContainsRune("#*0123456789", st.base) && strings.HasPrefix(rest, string(keycap))
	styled := (r == textVS || r == emojiVS) && (pictograph(st.base) || key)
	ideograph := r >= 0xe0100 && unicode.Is(unicode.Han, st.base)
	if !styled && !ideograph {
		return -1
	}
	st.prev = r
	return r
}

// tag keeps the tag characters of a subdivision flag (🏴 with letters and an end tag) and no others: they spell out
// invisible text.
func (st *filterState) tag(r rune, rest string) rune {
	if st.base != flagBase || (st.prev != flagBase && st.tags == 0) || st.tags >= maxTags {
		return -1
	}
	if st.tags == 0 && !endsInTag(r, rest) {
		return -1
	}
	st.tags++
	if r == endTag {
		st.tags = maxTags
	}
	st.prev = r
	return r
}

// endsInTag tells whether the run of tags that begins with r ends in an end tag within maxTags.
func endsInTag(r rune, rest string) bool {
	for n := 1; n <= maxTags; n++ {
		if r == endTag {
			return n > 1
		}
		next, size := utf8.DecodeRuneInString(rest)
		if !isTag(next) {
			return false
		}
		r, rest = next, rest[size:]
	}
	return false
}

func isTag(r rune) bool { return r >= 0xe0020 && r <= 0xe007f }

func isSelector(r rune) bool {
	return (r >= 0xfe00 && r <= 0xfe0f) || (r >= 0xe0100 && r <= 0xe01ef)
}

// isFiller tells the Hangul fillers, which are letters by category and blank by look.
func isFiller(r rune) bool { return r == '\u115f' || r == '\u1160' || r == '\u3164' || r == '\uffa0' }

// hidden tells what is never drawn: format controls (among them every bidi control) and what Unicode calls default
// ignorable. The signs that stand around Arabic and other numbers are format characters too, but drawn.
func hidden(r rune) bool {
	if unicode.Is(unicode.Prepended_Concatenation_Mark, r) {
		return false
	}
	return unicode.In(r, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) ||
		(r >= 0xe0000 && r <= 0xe0fff)
}

// joining tells scripts that spell with joiners: those of the Arabic family and of India and its neighbours.
func joining(r rune) bool {
	return unicode.In(r, unicode.Arabic, unicode.Syriac, unicode.Mongolian, unicode.Devanagari, unicode.Bengali,
		unicode.Gurmukhi, unicode.Gujarati, unicode.Oriya, unicode.Tamil, unicode.Telugu, unicode.Kannada,
		unicode.Malayalam, unicode.Sinhala)
}

// pictograph tells what may stand in an emoji sequence: symbols from the blocks that hold emoji, and skin tones.
func pictograph(r rune) bool {
	switch {
	case r >= 0x1f000 && r <= 0x1faff:
		return true
	case r >= 0x2190 && r <= 0x2bff:
		return true
	}
	return r == 0xa9 || r == 0xae || r == 0x203c || r == 0x2049 || r == 0x2122 || r == 0x2139 || r == 0x3030 ||
		r == 0x303d || r == 0x3297 || r == 0x3299
}
