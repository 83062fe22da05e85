package identity

import (
	"crypto/sha512"
	"fmt"
	"strings"
)

// SafetyDigits returns what two people compare to know that nobody stands between them: twelve groups of five digits,
// the same on both sides.
func SafetyDigits(a, b AccountID) string {
	if b.Less(a) {
		a, b = b, a
	}
	sum := sha512.Sum512([]byte("hima/safety/1\x00" + string(a[:]) + string(b[:])))
	groups := make([]string, 12)
	for i := range groups {
		var n uint64
		for _, c := range sum[5*i : 5*i+5] {
			n = n<<8 | uint64(c)
		}
		groups[i] = fmt.Sprintf("%05d", n%100000)
	}
	return strings.Join(groups, " ")
}

// SafetyQR returns the text of a QR code for the same purpose, the same on both sides. It is in upper case because
// that makes a smaller code.
func SafetyQR(a, b AccountID) string {
	if b.Less(a) {
		a, b = b, a
	}
	return strings.ToUpper("hima-verify:" + a.String() + "+" + b.String())
}
