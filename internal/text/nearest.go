package text

import "strings"

// Nearest returns the known word that a mistyped one most likely means, "" if none is near.
func Nearest(typed string, known []string) string {
	best, bestDistance := "", 4 // more than three changes is another word
	for _, k := range known {
		if d := distance(strings.ToLower(typed), k); d < bestDistance && d < len(k) {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j+1]+1, row[j]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
