package main

import (
	"strings"

	"rsc.io/qr"

	"hima/internal/control"
)

// quietZone is the empty border a reader needs to find the code; the standard says four modules, readers manage with two.
const quietZone = 2

// qr draws text as a QR code, two modules a character cell.
func (a *app) qr(content string) (string, error) {
	code, err := qr.Encode(content, qr.L)
	if err != nil {
		return "", fail(control.TooLarge, "error.qr_long")
	}
	size := code.Size + 2*quietZone
	if w := a.width(); w > 0 && size > w {
		return "", fail(control.TooLarge, "error.qr_wide", "Columns", size)
	}
	dark := func(x, y int) bool { return code.Black(x-quietZone, y-quietZone) }
	var b strings.Builder
	for y := 0; y < size; y += 2 {
		if y > 0 {
			b.WriteByte('\n')
		}
		var row strings.Builder
		for x := range size {
			// Light modules are drawn and dark ones left out: right on a dark screen without colours. With colours
			// both are set, so that it is right on any screen.
			switch top, bottom := dark(x, y), dark(x, y+1) || y+1 >= size; {
			case top && bottom:
				row.WriteRune(' ')
			case top:
				row.WriteRune('▄')
			case bottom:
				row.WriteRune('▀')
			default:
				row.WriteRune('█')
			}
		}
		b.WriteString(a.sgr("97;40", row.String()))
	}
	return b.String(), nil
}
