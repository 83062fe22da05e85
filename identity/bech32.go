package identity

import (
	"fmt"
	"strings"
)

// Bech32m of BIP 350, for 32-byte keys only. The checksum finds any four changed characters.

const (
	bech32Charset = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
	bech32mConst  = 0x2bc830a3
	accountPrefix = "hima"
)

func polymod(chk uint32, v byte) uint32 {
	gen := [5]uint32{0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3}
	top := chk >> 25
	chk = (chk&0x1ffffff)<<5 ^ uint32(v)
	for i, g := range gen {
		if top>>i&1 == 1 {
			chk ^= g
		}
	}
	return chk
}

func bech32Start(hrp string) uint32 {
	chk := uint32(1)
	for i := range len(hrp) {
		chk = polymod(chk, hrp[i]>>5)
	}
	chk = polymod(chk, 0)
	for i := range len(hrp) {
		chk = polymod(chk, hrp[i]&31)
	}
	return chk
}

func bech32mEncode(hrp string, key [32]byte) string {
	var b strings.Builder
	b.WriteString(hrp)
	b.WriteByte('1')
	chk := bech32Start(hrp)
	put := func(v byte) {
		b.WriteByte(bech32Charset[v])
		chk = polymod(chk, v)
	}
	var acc uint32
	var n uint
	for _, c := range key {
		acc = acc<<8 | uint32(c)
		for n += 8; n >= 5; {
			n -= 5
			put(byte(acc >> n & 31))
		}
	}
	put(byte(acc << (5 - n) & 31))
	for range 6 {
		chk = polymod(chk, 0)
	}
	chk ^= bech32mConst
	for i := range 6 {
		b.WriteByte(bech32Charset[chk>>(5*(5-i))&31])
	}
	return b.String()
}

func bech32mDecode(hrp, s string) (key [32]byte, err error) {
	if len(s) != len(hrp)+1+52+6 {
		return key, fmt.Errorf("%d characters: %w", len(s), ErrMalformed)
	}
	// All upper case is allowed, for QR codes; a mixture is not.
	lower := strings.ToLower(s)
	if s != lower && s != strings.ToUpper(s) {
		return key, fmt.Errorf("mixed case: %w", ErrMalformed)
	}
	if !strings.HasPrefix(lower, hrp+"1") {
		return key, fmt.Errorf("does not begin with %s1: %w", hrp, ErrMalformed)
	}
	data := lower[len(hrp)+1:]
	chk := bech32Start(hrp)
	var acc uint32
	var n, out uint
	for i := range len(data) {
		v := strings.IndexByte(bech32Charset, data[i])
		if v < 0 {
			return key, fmt.Errorf("character %q: %w", data[i], ErrMalformed)
		}
		chk = polymod(chk, byte(v))
		if i >= 52 {
			continue
		}
		acc = (acc<<5 | uint32(v)) & 0xfff
		if n += 5; n >= 8 {
			n -= 8
			key[out] = byte(acc >> n)
			out++
		}
	}
	if chk != bech32mConst {
		return key, fmt.Errorf("checksum: %w", ErrMalformed)
	}
	// 52 characters carry 260 bits; the last four must be zero, or one key had sixteen texts.
	if acc&(1<<n-1) != 0 {
		return key, fmt.Errorf("padding bits: %w", ErrMalformed)
	}
	return key, nil
}
