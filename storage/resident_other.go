//go:build !linux

package storage

// mappedResident is not known here, which leaves the pages of tables to the system.
func mappedResident() (uint64, error) { return 0, nil }

func releaseTables(string) error { return nil }

// readScattered: how much is read ahead is left to the system too.
func readScattered(string) error { return nil }
