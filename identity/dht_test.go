package identity_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"hima/identity"
)

func prekeyOf(b byte) identity.PrekeySecret {
	s := seed(b)
	k, err := identity.PrekeySecretFromBytes(s[:])
	if err != nil {
		panic(err)
	}
	return k
}

func deviceConfig(d byte) identity.DeviceRecordConfig {
	return identity.DeviceRecordConfig{
		Certificate: cert(1, d), Now: day, Prekey: prekeyOf(60).Public(), PrekeyCreated: day.Add(-time.Hour),
		Mailboxes: []identity.MailboxRef{{Device: device(20), Addrs: []string{"/ip4/203.0.113.5/tcp/4500"}}, {Device: device(21)}},
		Addrs:     []string{"/ip4/203.0.113.5/tcp/4500/p2p/" + device(20).String() + "/p2p-circuit", "/ip4/192.168.1.17/tcp/4500"},
		Request:   identity.RequestInbox{Mailbox: device(20), Inbox: seed(7), WorkBits: 18},
	}
}

func deviceRecord(t require.TestingT, d byte, c identity.DeviceRecordConfig) identity.DeviceRecord {
	r, err := identity.NewDeviceRecord(deviceKey(d), c)
	require.NoError(t, err)
	return r
}

func accountRecord(t require.TestingT, c identity.RecordConfig) identity.AccountRecord {
	r, err := identity.NewAccountRecord(key(1), c)
	require.NoError(t, err)
	return r
}

func TestDeviceRecord(t *testing.T) {
	r := deviceRecord(t, 2, deviceConfig(2))
	t.Logf("a device record has %d bytes", len(r.Raw()))
	got, err := identity.ParseDeviceRecord(r.Raw())
	require.NoError(t, err)
	require.Equal(t, r, got)
	require.Equal(t, device(2), got.Device)
	require.EqualValues(t, day.UnixMilli(), got.Seq)
	require.Equal(t, day.Add(identity.DeviceRecordLifetime), got.Expires)
	require.False(t, got.Expired(got.Expires.Add(identity.ClockSlack)))
	require.True(t, got.Expired(got.Expires.Add(identity.ClockSlack+1)))
	raw := r.Raw()
	rapid.Check(t, func(t *rapid.T) {
		bad := r.Raw()
		bad[rapid.IntRange(0, len(raw)-1).Draw(t, "at")] ^= rapid.ByteRange(1, 255).Draw(t, "xor")
		_, err := identity.ParseDeviceRecord(bad)
		require.Error(t, err)
	})
	bare := deviceRecord(t, 2, identity.DeviceRecordConfig{Certificate: cert(1, 2), Now: day, LastSeq: uint64(day.UnixMilli()) + 5})
	got, err = identity.ParseDeviceRecord(bare.Raw())
	require.NoError(t, err)
	require.Equal(t, bare, got)
	require.EqualValues(t, day.UnixMilli()+6, got.Seq)
	require.True(t, got.Prekey.IsZero() && got.Request.IsZero())
	require.Positive(t, identity.CompareDeviceRecords(bare, r))
}

func TestDeviceRecordRefuses(t *testing.T) {
	for name, change := range map[string]func(*identity.DeviceRecordConfig){
		"no certificate":      func(c *identity.DeviceRecordConfig) { c.Certificate = identity.Certificate{} },
		"another's":           func(c *identity.DeviceRecordConfig) { c.Certificate = cert(1, 3) },
		"no number left":      func(c *identity.DeviceRecordConfig) { c.LastSeq = identity.MaxSeq },
		"five mailboxes":      func(c *identity.DeviceRecordConfig) { c.Mailboxes = make([]identity.MailboxRef, 5) },
		"mailbox without key": func(c *identity.DeviceRecordConfig) { c.Mailboxes = make([]identity.MailboxRef, 1) },
		"mailbox twice":       func(c *identity.DeviceRecordConfig) { c.Mailboxes = append(c.Mailboxes, c.Mailboxes[0]) },
		"request elsewhere":   func(c *identity.DeviceRecordConfig) { c.Request.Mailbox = device(22) },
		"too much work":       func(c *identity.DeviceRecordConfig) { c.Request.WorkBits = identity.MaxWorkBits + 1 },
		"negative work":       func(c *identity.DeviceRecordConfig) { c.Request.WorkBits = -1 },
	} {
		c := deviceConfig(2)
		change(&c)
		_, err := identity.NewDeviceRecord(deviceKey(2), c)
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	// Addresses are hints: what does not fit is left out, and a record full to the bounds is within its size.
	c := deviceConfig(2)
	long := "/dns4/" + strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + "." + strings.Repeat("c", 50) + "/udp/65535/quic-v1"
	c.Mailboxes = nil
	for i := range byte(identity.MaxMailboxes) {
		c.Mailboxes = append(c.Mailboxes, identity.MailboxRef{Device: device(20 + i), Addrs: []string{long, long, long, long, long}})
	}
	c.Addrs = []string{"nonsense", long, long, long, long, long, long, long, long, long}
	r := deviceRecord(t, 2, c)
	require.Len(t, r.Addrs, identity.MaxRecordAddrs)
	require.Len(t, r.Mailboxes[0].Addrs, identity.MaxMailboxAddrs)
	t.Logf("a full device record has %d bytes", len(r.Raw()))
	_, err := identity.ParseDeviceRecord(r.Raw())
	require.NoError(t, err)
}

func TestDHTKeys(t *testing.T) {
	network := aLink().ID()
	seen := map[string]bool{}
	for _, k := range []string{
		identity.AccountRecordKey(identity.AccountID(seed(1))), identity.DeviceRecordKey(identity.DeviceID(seed(1))),
		identity.NameKey(network, "alice"), identity.NameKey(network, "alicf"), identity.NameKey(seed(1), "alice"),
	} {
		require.Regexp(t, `^/hima-(id|dev|name)/[a-z2-7]{52}$`, k)
		require.False(t, seen[k])
		seen[k] = true
	}
}

func validators(now time.Time) map[string]identity.Validator {
	return identity.Validators(aLink().ID(), aLink().Keys, func() time.Time { return now })
}

func namespaceOf(key string) string { return strings.Split(key, "/")[1] }

func TestValidate(t *testing.T) {
	network := aLink().ID()
	acct := accountRecord(t, identity.RecordConfig{Now: day, Devices: []identity.Certificate{cert(1, 2)}})
	dev := deviceRecord(t, 2, deviceConfig(2))
	c := claim(t, 1, "alice", day)
	name := identity.StampedName(stamp(t, 20, c, day.Add(time.Hour)))
	foreign, err := identity.NewNameClaim(key(1), seed(9), "alice", day)
	require.NoError(t, err)
	slack := identity.ClockSlack
	for _, x := range []struct {
		what, namespace, key string
		value                []byte
		now                  time.Time
		want                 error
	}{
		{"account", "hima-id", identity.AccountRecordKey(acct.Account), acct.Raw(), day, nil},
		{"another account's key", "hima-id", identity.AccountRecordKey(key(2).ID()), acct.Raw(), day, identity.ErrMalformed},
		{"last moment", "hima-id", identity.AccountRecordKey(acct.Account), acct.Raw(), acct.Expires.Add(slack), nil},
		{"expired", "hima-id", identity.AccountRecordKey(acct.Account), acct.Raw(), acct.Expires.Add(slack + time.Millisecond), identity.ErrExpired},
		{"a day ahead", "hima-id", identity.AccountRecordKey(acct.Account), acct.Raw(), day.Add(-slack), nil},
		{"further ahead", "hima-id", identity.AccountRecordKey(acct.Account), acct.Raw(), day.Add(-slack - time.Millisecond), identity.ErrFromFuture},
		{"device", "hima-dev", identity.DeviceRecordKey(device(2)), dev.Raw(), day, nil},
		{"another device's key", "hima-dev", identity.DeviceRecordKey(device(3)), dev.Raw(), day, identity.ErrMalformed},
		{"device expired", "hima-dev", identity.DeviceRecordKey(device(2)), dev.Raw(), dev.Expires.Add(slack + time.Millisecond), identity.ErrExpired},
		{"device ahead", "hima-dev", identity.DeviceRecordKey(device(2)), dev.Raw(), day.Add(-slack - time.Millisecond), identity.ErrFromFuture},
		{"account as device", "hima-dev", identity.DeviceRecordKey(device(2)), acct.Raw(), day, identity.ErrBadSignature},
		{"name", "hima-name", identity.NameKey(network, "alice"), name.Raw(), day, nil},
		{"unstamped", "hima-name", identity.NameKey(network, "alice"), identity.UnstampedName(c).Raw(), day, nil},
		{"another name", "hima-name", identity.NameKey(network, "bob"), name.Raw(), day, identity.ErrMalformed},
		{"another network", "hima-name", identity.NameKey(network, "alice"), identity.UnstampedName(foreign).Raw(), day, identity.ErrMalformed},
		{"another network's key", "hima-name", identity.NameKey(seed(9), "alice"), identity.UnstampedName(foreign).Raw(), day, identity.ErrMalformed},
		{"stamp ahead", "hima-name", identity.NameKey(network, "alice"), name.Raw(), day.Add(time.Hour - slack - time.Millisecond), identity.ErrFromFuture},
		{"claim ahead", "hima-name", identity.NameKey(network, "alice"), identity.UnstampedName(c).Raw(), day.Add(-slack - time.Millisecond), identity.ErrFromFuture},
		{"names do not expire", "hima-name", identity.NameKey(network, "alice"), name.Raw(), day.AddDate(10, 0, 0), nil},
		{"garbage", "hima-name", identity.NameKey(network, "alice"), []byte("garbage"), day, identity.ErrMalformed},
		{"too large", "hima-name", identity.NameKey(network, "alice"), make([]byte, identity.MaxNameRecord+1), day, identity.ErrMalformed},
	} {
		err := validators(x.now)[x.namespace].Validate(x.key, x.value)
		if x.want == nil {
			require.NoError(t, err, x.what)
		} else {
			require.ErrorIs(t, err, x.want, x.what)
		}
	}
}

// competitors returns, for each namespace, different values of one key.
func competitors(t require.TestingT) map[string][][]byte {
	out := map[string][][]byte{}
	for i := range byte(4) {
		at := day.Add(time.Duration(i/2) * time.Millisecond) // two and two of one number: bytes decide
		out["hima-id"] = append(out["hima-id"], accountRecord(t, identity.RecordConfig{Now: at, Devices: []identity.Certificate{cert(1, 10+i)}}).Raw())
		c := deviceConfig(2)
		c.Now, c.Request.Inbox = at, seed(i+1)
		out["hima-dev"] = append(out["hima-dev"], deviceRecord(t, 2, c).Raw())
	}
	for _, r := range nameField(t) {
		out["hima-name"] = append(out["hima-name"], r.Raw())
	}
	return out
}

// permutations calls f with every order of values.
func permutations(values [][]byte, f func([][]byte)) {
	var walk func(int)
	walk = func(k int) {
		if k == len(values) {
			f(values)
			return
		}
		for i := k; i < len(values); i++ {
			values[k], values[i] = values[i], values[k]
			walk(k + 1)
			values[k], values[i] = values[i], values[k]
		}
	}
	walk(0)
}

// TestSelectIsOneOrder is test E (R18, R19): every permutation and every pair of values gives one winner, equal bytes
// give index 0, and neither the clock nor values that nobody may keep change the choice.
func TestSelectIsOneOrder(t *testing.T) {
	for namespace, values := range competitors(t) {
		t.Run(namespace, func(t *testing.T) {
			v := validators(day)[namespace]
			pick := func(values [][]byte) string {
				i, err := v.Select("/"+namespace+"/x", values)
				require.NoError(t, err)
				return string(values[i])
			}
			winner := pick(values)
			n := 0
			permutations(values, func(p [][]byte) { n++; require.Equal(t, winner, pick(p)) })
			require.Greater(t, n, 20)
			late := validators(day.AddDate(50, 0, 0))[namespace]
			i, err := late.Select("/"+namespace+"/x", values)
			require.NoError(t, err)
			require.Equal(t, winner, string(values[i]), "Select looks at no clock")

			for i, a := range values {
				for j, b := range values {
					require.Equal(t, pick([][]byte{a, b}), pick([][]byte{b, a}), "%d %d", i, j)
					// The winner of a pair wins with a third one only if that one loses to it, too: no cycles.
					for _, c := range values {
						require.Equal(t, pick([][]byte{a, b, c}), pick([][]byte{[]byte(pick([][]byte{a, b})), c}))
					}
				}
				at, err := v.Select("/"+namespace+"/x", [][]byte{a, a, a})
				require.NoError(t, err)
				require.Zero(t, at)
				at, err = v.Select("/"+namespace+"/x", [][]byte{[]byte("garbage"), nil, a})
				require.NoError(t, err)
				require.Equal(t, 2, at)
			}
			_, err = v.Select("/"+namespace+"/x", [][]byte{[]byte("garbage")})
			require.ErrorIs(t, err, identity.ErrMalformed)
			_, err = v.Select("/"+namespace+"/x", nil)
			require.ErrorIs(t, err, identity.ErrMalformed)
		})
	}
}

// TestSelectAny does the same for random sets with repetitions.
func TestSelectAny(t *testing.T) {
	all := competitors(t)
	rapid.Check(t, func(t *rapid.T) {
		namespace := rapid.SampledFrom([]string{"hima-id", "hima-dev", "hima-name"}).Draw(t, "namespace")
		v := validators(day)[namespace]
		set := rapid.SliceOfN(rapid.SampledFrom(all[namespace]), 1, 8).Draw(t, "values")
		i, err := v.Select("", set)
		require.NoError(t, err)
		for j := range i {
			require.NotEqual(t, set[i], set[j], "not the first of equal ones")
		}
		again := rapid.Permutation(set).Draw(t, "order")
		j, err := v.Select("", again)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("%x", set[i]), fmt.Sprintf("%x", again[j]))
	})
}
