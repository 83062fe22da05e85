package roster

import "math/bits"

// set is a set of acts by their place in the order of arrival, which puts ancestors first.
type set []uint64

func (s set) has(i int) bool { return i>>6 < len(s) && s[i>>6]&(1<<(i&63)) != 0 }

// add grows the set as needed and returns it.
func (s set) add(i int) set {
	for len(s) <= i>>6 {
		s = append(s, 0)
	}
	s[i>>6] |= 1 << (i & 63)
	return s
}

// drop takes one out.
func (s set) drop(i int) {
	if i>>6 < len(s) {
		s[i>>6] &^= 1 << (i & 63)
	}
}

// meets tells whether there is something that both have.
func (s set) meets(t set) bool {
	for i := range min(len(s), len(t)) {
		if s[i]&t[i] != 0 {
			return true
		}
	}
	return false
}

// inside tells whether t has everything.
func (s set) inside(t set) bool {
	for i, w := range s {
		if i < len(t) {
			w &^= t[i]
		}
		if w != 0 {
			return false
		}
	}
	return true
}

func (s set) clone() set { return append(make(set, 0, len(s)+1), s...) }

// join adds all of t.
func (s set) join(t set) set {
	for len(s) < len(t) {
		s = append(s, 0)
	}
	for i, w := range t {
		s[i] |= w
	}
	return s
}

// meet keeps what t has too.
func (s set) meet(t set) set {
	for i := range s {
		if i < len(t) {
			s[i] &= t[i]
		} else {
			s[i] = 0
		}
	}
	return s
}

// each calls f in ascending order until it returns false.
func (s set) each(f func(i int) bool) {
	for w, word := range s {
		for word != 0 {
			i := bits.TrailingZeros64(word)
			if !f(w<<6 + i) {
				return
			}
			word &^= 1 << i
		}
	}
}

// without calls f for what s has and t has not.
func (s set) without(t set, f func(i int) bool) {
	for w, word := range s {
		if w < len(t) {
			word &^= t[w]
		}
		for word != 0 {
			i := bits.TrailingZeros64(word)
			if !f(w<<6 + i) {
				return
			}
			word &^= 1 << i
		}
	}
}
