package directory

import (
	"time"

	"hima/identity"
)

// DeviceInfo is what a device tells the world about itself in its record, besides its addresses.
type DeviceInfo struct {
	Prekey        identity.Prekey
	PrekeyCreated time.Time
	Mailboxes     []identity.MailboxRef
	Request       identity.RequestInbox // zero: strangers can leave nothing
}

// SetDevice says what the device record is to hold. It returns at once; the record is signed, made durable and published by
// Run, a moment later, so that several changes become one.
func (d *Directory) SetDevice(info DeviceInfo) {}
