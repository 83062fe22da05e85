package identity

import "hima/internal/wire/pb"

// PB returns the form in which entries and records name a mailbox. Addresses beyond the bounds, and those that do not
// parse, are left out.
func (r MailboxRef) PB() *pb.MailboxRef { return packMailbox(r) }

// MailboxRefFromPB checks what others wrote.
func MailboxRefFromPB(m *pb.MailboxRef) (MailboxRef, error) { return unpackMailbox(m) }
