package feed

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"

	"hima/identity"
)

const domainKnock = "hima/knock/1\x00"

// Work finds the proof of work for a knock without invite token: eight bytes that make the hash over both accounts and
// the entry begin with so many zero bits. It takes about 2^zeros hashes and returns nil above MaxWorkBits. Since the
// receiver's account is in it, work done for one cannot be spent at another.
func Work(from, to identity.AccountID, entry EntryID, zeros int) []byte {
	if zeros > MaxWorkBits {
		return nil
	}
	buf := workInput(from, to, entry)
	at := len(buf)
	buf = append(buf, make([]byte, workLen)...)
	for n := uint64(0); ; n++ {
		binary.BigEndian.PutUint64(buf[at:], n)
		if zeroBits(sha256.Sum256(buf)) >= zeros {
			return buf[at:]
		}
	}
}

// CheckWork tells whether the proof is good for at least so many zero bits.
func CheckWork(from, to identity.AccountID, entry EntryID, work []byte, zeros int) bool {
	if len(work) != workLen {
		return false
	}
	return zeroBits(sha256.Sum256(append(workInput(from, to, entry), work...))) >= zeros
}

func workInput(from, to identity.AccountID, entry EntryID) []byte {
	buf := make([]byte, 0, len(domainKnock)+3*32+workLen)
	buf = append(buf, domainKnock...)
	buf = append(buf, from[:]...)
	buf = append(buf, to[:]...)
	return append(buf, entry[:]...)
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
