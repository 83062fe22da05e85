package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// Migration brings a database of an older schema to Version. Apply runs in one transaction together with noting the
// version, so it is done or not done. It is not run on a database made by this version.
type Migration struct {
	Version int    // at least 2, ascending
	Name    string // for the log
	Apply   func(*Tx) error
}

// baseVersion is the schema of a database that no migration has touched.
const baseVersion = 1

// schemaKey holds the schema version as a uvarint.
const schemaKey = "s/schema"

func (db *DB) migrate() error {
	newest := baseVersion
	if n := len(db.config.Migrations); n > 0 {
		newest = db.config.Migrations[n-1].Version
	}
	version, err := db.version()
	switch {
	case err != nil:
		return fmt.Errorf("reading the schema version: %w", err)
	case version == 0:
		return db.Update(context.Background(), func(tx *Tx) error { return setVersion(tx, newest) })
	case version > newest:
		return fmt.Errorf("schema %d is above %d: %w", version, newest, ErrNewer)
	}
	for _, m := range db.config.Migrations {
		if m.Version <= version {
			continue
		}
		db.log.Info("migrating the database", "to", m.Version, "name", m.Name)
		err := db.Update(context.Background(), func(tx *Tx) error {
			if err := m.Apply(tx); err != nil {
				return err
			}
			return setVersion(tx, m.Version)
		})
		if err != nil {
			return fmt.Errorf("migrating to schema %d: %w", m.Version, err)
		}
	}
	return nil
}

// version returns the stored schema version, 0 for a database that was just made.
func (db *DB) version() (int, error) {
	var version int
	err := db.View(func(tx *Tx) error {
		raw, err := tx.Get([]byte(schemaKey))
		if errors.Is(err, ErrNotFound) {
			return tx.Scan(ScanOptions{KeysOnly: true, Limit: 1}, func([]byte, []byte) (bool, error) {
				return false, fmt.Errorf("schema version is missing: %w", ErrDamaged)
			})
		}
		if err != nil {
			return err
		}
		v, n := binary.Uvarint(raw)
		if n <= 0 || v == 0 || v > 1<<30 {
			return fmt.Errorf("schema version %x: %w", raw, ErrDamaged)
		}
		version = int(v)
		return nil
	})
	return version, err
}

func setVersion(tx *Tx, version int) error {
	return tx.Set([]byte(schemaKey), binary.AppendUvarint(nil, uint64(version)))
}
