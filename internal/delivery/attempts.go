package delivery

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"hima/identity"
	"hima/storage"
)

// keyAttempts is where the attempts of a device are kept, newest first, in one value.
const keyAttempts = "y/a/"

// Bounds of the log of one device: entries, and bytes of the texts in one.
const (
	maxAttempts = 16
	maxNote     = 200
)

func attemptsKey(device identity.DeviceID) []byte {
	return append([]byte(keyAttempts), device[:]...)
}

// Why lists the attempts to reach a device, newest first, at most 16.
func (d *Delivery) Why(device identity.DeviceID) ([]Attempt, error) {
	var out []Attempt
	err := d.cfg.DB.View(func(tx *storage.Tx) (err error) {
		out, err = loadAttempts(tx, device)
		return err
	})
	return out, err
}

// note adds an attempt. It takes the path of caches: nothing depends on it, and a crash may lose the newest. One that went
// like the last one takes its place, or a device that is away for an hour would push out what else was tried.
func (d *Delivery) note(device identity.DeviceID, a Attempt) error {
	return noteAttempt(d.cfg.DB, device, a)
}

func noteAttempt(db *storage.DB, device identity.DeviceID, a Attempt) error {
	a.Addr, a.Error = cut(a.Addr), cut(a.Error)
	return db.Cache(func(tx *storage.Tx) error {
		list, err := loadAttempts(tx, device)
		if err != nil {
			list = nil // damaged: begin anew, it is only a log
		}
		if len(list) > 0 && a.Error != "" && list[0].Road == a.Road && list[0].Addr == a.Addr && list[0].Error == a.Error {
			list = list[1:]
		}
		list = append([]Attempt{a}, list...)
		return tx.Set(attemptsKey(device), encodeAttempts(list[:min(len(list), maxAttempts)]))
	})
}

func cut(s string) string {
	if len(s) <= maxNote {
		return s
	}
	s = s[:maxNote]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

var errDamaged = errors.New("stored attempts are damaged")

// An attempt is stored as Unix milliseconds, then road, address and error, each with its length before it.
func encodeAttempts(list []Attempt) []byte {
	b := []byte{1}
	for _, a := range list {
		b = binary.BigEndian.AppendUint64(b, uint64(a.Time.UnixMilli()))
		for _, s := range []string{string(a.Road), a.Addr, a.Error} {
			b = binary.AppendUvarint(b, uint64(len(s)))
			b = append(b, s...)
		}
	}
	return b
}

func loadAttempts(tx *storage.Tx, device identity.DeviceID) ([]Attempt, error) {
	b, err := tx.Get(attemptsKey(device))
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeAttempts(b)
}

func decodeAttempts(b []byte) ([]Attempt, error) {
	if len(b) == 0 || b[0] != 1 {
		return nil, fmt.Errorf("reading attempts: %w", errDamaged)
	}
	b = b[1:]
	var out []Attempt
	for len(b) > 0 {
		if len(b) < 8 {
			return nil, fmt.Errorf("reading attempts: %w", errDamaged)
		}
		a := Attempt{Time: time.UnixMilli(int64(binary.BigEndian.Uint64(b)))}
		b = b[8:]
		var texts [3]string
		for i := range texts {
			n, w := binary.Uvarint(b)
			if w <= 0 || n > uint64(len(b)-w) {
				return nil, fmt.Errorf("reading attempts: %w", errDamaged)
			}
			texts[i], b = string(b[w:w+int(n)]), b[w+int(n):]
		}
		a.Road, a.Addr, a.Error = Road(texts[0]), texts[1], texts[2]
		out = append(out, a)
	}
	return out, nil
}
