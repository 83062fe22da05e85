package messenger

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	"hima/groups"
	"hima/identity"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

const (
	// snapshotMembers is how many members of a group a snapshot names.
	snapshotMembers = identity.MaxGroupContacts
	// groupsShare is how many bytes of a snapshot groups may take before people do.
	groupsShare = maxSnapshot / 4
)

// rankedGroup is a group with when something last happened there.
type rankedGroup struct {
	group    *pb.SnapshotGroup
	activity int64
}

// snapshotGroups lists the groups that a new device needs to know of.
func (m *Messenger) snapshotGroups(tx *storage.Tx) (out []rankedGroup, err error) {
	list, err := m.env.groups.Remembered(tx)
	if err != nil {
		return nil, err
	}
	for _, g := range list {
		members, err := m.askable(tx, g.Members)
		if err != nil {
			return nil, err
		}
		conv, _, err := m.convs.get(tx, g.Group)
		if err != nil {
			return nil, err
		}
		one := &pb.SnapshotGroup{Group: g.Group[:], Name: text.OneLine(g.Name, maxField)}
		for _, a := range members {
			one.Members = append(one.Members, a.Bytes())
		}
		out = append(out, rankedGroup{one, conv.activity})
	}
	return out, nil
}

// askable chooses some of a group's members: contacts first, who are met anyway, those who are blocked last, and else the
// strongest, who stay.
func (m *Messenger) askable(tx *storage.Tx, members []identity.AccountID) ([]identity.AccountID, error) {
	rank := make(map[identity.AccountID]int, len(members))
	for _, a := range members {
		row, _, err := m.contacts.get(tx, a)
		switch {
		case err != nil:
			return nil, err
		case row.Blocked:
			rank[a] = 1
		case row.State == pb.ContactState_STATE_CONTACT:
			rank[a] = -1
		}
	}
	members = slices.Clone(members)
	slices.SortStableFunc(members, func(a, b identity.AccountID) int { return cmp.Compare(rank[a], rank[b]) })
	return members[:min(len(members), snapshotMembers)], nil
}

// fillSnapshot adds people and groups as far as they fit. Neither many people nor many groups keep all of the others out.
func fillSnapshot(s *pb.Snapshot, people []rankedContact, joined []rankedGroup) {
	joined = fillGroups(s, joined, min(maxSnapshot, proto.Size(s)+groupsShare))
	cut := fill(s, people)
	joined = fillGroups(s, joined, maxSnapshot)
	s.Cut = cut || len(joined) > 0
}

// fillGroups adds groups up to a size of the whole, those where something happened last first, and returns those that are
// left over. In the message they stand in the order of their IDs, or every message would make another snapshot.
func fillGroups(s *pb.Snapshot, list []rankedGroup, most int) []rankedGroup {
	slices.SortStableFunc(list, func(a, b rankedGroup) int { return cmp.Compare(b.activity, a.activity) })
	size, n := proto.Size(s)+2, 0
	for n < len(list) {
		if size += proto.Size(list[n].group) + 4; size > most {
			break
		}
		s.Groups = append(s.Groups, list[n].group)
		n++
	}
	slices.SortFunc(s.Groups, func(a, b *pb.SnapshotGroup) int { return slices.Compare(a.GetGroup(), b.GetGroup()) })
	return list[n:]
}

// importGroups hands groups on; what does not read is left out.
func (m *Messenger) importGroups(tx *storage.Tx, list []*pb.SnapshotGroup) (n int, err error) {
	for _, p := range list {
		if len(p.GetGroup()) != len(groups.ID{}) {
			continue
		}
		g := groups.Remembered{Group: groups.ID(p.GetGroup()), Name: text.OneLine(p.GetName(), maxField)}
		for _, b := range p.GetMembers() {
			if a, err := identity.AccountIDFromBytes(b); err == nil && a != m.env.account {
				g.Members = append(g.Members, a)
			}
		}
		taken, err := m.env.groups.Restore(tx, g)
		if err != nil {
			return n, err
		}
		if taken {
			n++
		}
	}
	return n, nil
}
