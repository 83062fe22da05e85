package identity

import (
	"fmt"
	"strings"

	"github.com/tyler-smith/go-bip39"
)

// phraseWords is the length of a recovery phrase: 256 bits of seed and 8 of checksum, 11 bits a word.
const phraseWords = 24

// phraseOf writes an account seed as BIP 39 words (English list).
func phraseOf(seed [32]byte) string {
	s, err := bip39.NewMnemonic(seed[:])
	if err != nil {
		panic("identity: " + err.Error()) // only for a wrong length
	}
	return s
}

// seedOfPhrase reads a phrase, whatever its case and white space.
func seedOfPhrase(phrase string) (seed [32]byte, err error) {
	if len(phrase) > 4096 {
		return seed, fmt.Errorf("reading recovery phrase: %d bytes: %w", len(phrase), ErrBadPhrase)
	}
	words := strings.Fields(strings.ToLower(phrase))
	if len(words) != phraseWords {
		return seed, fmt.Errorf("reading recovery phrase: %d words: %w", len(words), ErrBadPhrase)
	}
	b, err := bip39.EntropyFromMnemonic(strings.Join(words, " "))
	if err != nil || len(b) != len(seed) {
		// The cause may quote a word, which is part of the secret.
		return seed, fmt.Errorf("reading recovery phrase: unknown word or wrong checksum: %w", ErrBadPhrase)
	}
	copy(seed[:], b)
	return seed, nil
}
