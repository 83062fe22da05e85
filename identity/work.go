package identity

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

const (
	workLen   = 8
	workStep  = 1 << 14 // hashes between two looks at the context
	itemWork  = "hima/item-work/1\x00"
	claimWork = "hima/claim-work/1\x00"
)

// ItemWork finds the proof of work by which an item may lie in a request inbox: eight bytes that make a hash over inbox
// and item begin with so many zero bits, in about 2^zeros hashes. The inbox is in it, so that work is spent once. It
// returns nil above MaxWorkBits or when ctx ends.
func ItemWork(ctx context.Context, inbox InboxID, item []byte, zeros int) []byte {
	return work(ctx, itemWorkInput(inbox, item), zeros)
}

// CheckItemWork tells whether the proof is good for at least so many zero bits.
func CheckItemWork(inbox InboxID, item, work []byte, zeros int) bool {
	return checkWork(itemWorkInput(inbox, item), work, zeros)
}

// ClaimWork finds the proof of work by which a bootstrap node looks at a name claim. It returns nil above MaxWorkBits or
// when ctx ends.
func ClaimWork(ctx context.Context, claim NameClaim, zeros int) []byte {
	return work(ctx, claimWorkInput(claim), zeros)
}

// CheckClaimWork tells whether the proof is good for at least so many zero bits.
func CheckClaimWork(claim NameClaim, work []byte, zeros int) bool {
	return checkWork(claimWorkInput(claim), work, zeros)
}

func itemWorkInput(inbox InboxID, item []byte) []byte {
	hash := ItemHash(item)
	return append(append([]byte(itemWork), inbox[:]...), hash[:]...)
}

func claimWorkInput(claim NameClaim) []byte {
	hash := claim.Hash()
	return append([]byte(claimWork), hash[:]...)
}

func work(ctx context.Context, buf []byte, zeros int) []byte {
	if zeros > MaxWorkBits {
		return nil
	}
	at := len(buf)
	buf = append(buf, make([]byte, workLen)...)
	for n := uint64(0); ; n++ {
		if n%workStep == 0 && ctx.Err() != nil {
			return nil
		}
		binary.BigEndian.PutUint64(buf[at:], n)
		if zeroBits(sha256.Sum256(buf)) >= zeros {
			return buf[at:]
		}
	}
}

func checkWork(input, work []byte, zeros int) bool {
	return len(work) == workLen && zeroBits(sha256.Sum256(append(input, work...))) >= zeros
}

func zeroBits(sum [32]byte) int {
	n := 0
	for i := 0; i < len(sum); i += 8 {
		z := bits.LeadingZeros64(binary.BigEndian.Uint64(sum[i:]))
		n += z
		if z < 64 {
			break
		}
	}
	return n
}
