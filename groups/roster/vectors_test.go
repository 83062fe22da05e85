package roster

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/identity"
)

func named(name string) identity.AccountID { return identity.AccountID(sha256.Sum256([]byte(name))) }

func labelled(label string) (id ID) {
	copy(id[:], label)
	return id
}

// example is one of docs/spec/groups.md.
type example struct {
	acts      []Act
	people    []string
	void      map[ID]Reason
	epoch     string
	dissolved bool
}

func parseExample(t *testing.T, text string) example {
	e := example{void: map[ID]Reason{}}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		switch w[0] {
		case "=>":
			e.people = strings.Split(strings.Join(w[1:], " "), ", ")
		case "void":
			e.void[labelled(w[1])] = Reason(w[2])
		case "epoch":
			e.epoch = w[1]
		case "dissolved":
			e.dissolved = true
		default:
			e.acts = append(e.acts, parseAct(t, w))
		}
	}
	require.NotEmpty(t, e.acts)
	require.NotEmpty(t, e.people)
	return e
}

func parseAct(t *testing.T, w []string) Act {
	a := Act{ID: labelled(w[0]), Author: named(w[1]), Device: identity.DeviceID(sha256.Sum256([]byte(w[1] + "'s device")))}
	words := w[3:]
	if i := slices.Index(words, "after"); i >= 0 {
		for _, p := range words[i+1:] {
			a.Parents = append(a.Parents, labelled(p))
		}
		words = words[:i]
	}
	kinds := map[string]Kind{
		"create": Create, "admit": Admit, "leave": Leave, "remove": Remove, "role": SetRole, "transfer": Transfer, "set": Set,
		"nickname": Nickname, "epoch": NewEpoch, "revoke": Revoke, "dissolve": Dissolve,
	}
	a.Kind = kinds[w[2]]
	require.NotZero(t, a.Kind, "%v", w)
	if a.targets() {
		a.Account = named(words[0])
	}
	switch a.Kind {
	case SetRole:
		a.Role = map[string]Role{"member": Member, "admin": Admin}[words[1]]
	case Set:
		a.Key, a.Value = words[0], "by "+w[1]
	case NewEpoch:
		n, err := strconv.ParseUint(words[0], 10, 64)
		require.NoError(t, err)
		a.Generation, a.KeyHash = n, sha256.Sum256(a.ID[:])
	case Revoke:
		a.Revoked = identity.DeviceID(sha256.Sum256([]byte(w[1] + "'s other device")))
	}
	return a
}

func TestExamplesOfTheSpecification(t *testing.T) {
	b, err := os.ReadFile("../../docs/spec/groups.md")
	require.NoError(t, err)
	blocks := strings.Split(string(b), "```roster\n")[1:]
	require.GreaterOrEqual(t, len(blocks), 10)
	for i, block := range blocks {
		text, _, ok := strings.Cut(block, "```")
		require.True(t, ok)
		t.Run(fmt.Sprint("example-", i+1), func(t *testing.T) {
			e := parseExample(t, text)
			for order := range uint64(50) {
				acts := slices.Clone(e.acts)
				if order > 0 {
					rand.New(rand.NewPCG(order, 0)).Shuffle(len(acts), func(i, j int) { acts[i], acts[j] = acts[j], acts[i] })
				}
				e.check(t, acts)
			}
		})
	}
}

func (e example) check(t *testing.T, acts []Act) {
	r := New(e.acts[0].ID)
	for _, a := range acts {
		require.NoError(t, r.Add(a))
	}
	v := r.View()
	roles := map[string]Role{"owner": Owner, "admin": Admin, "member": Member}
	require.Len(t, v.People, len(e.people))
	for _, p := range e.people {
		name, role, _ := strings.Cut(p, " ")
		require.Equal(t, roles[role], v.Role(named(name)), name)
	}
	require.Equal(t, e.void, v.Void)
	require.Equal(t, e.dissolved, v.Dissolved)
	current, ok := v.Current()
	switch e.epoch {
	case "":
	case "none":
		require.False(t, ok)
	default:
		require.Equal(t, labelled(e.epoch), current.ID)
	}
}
