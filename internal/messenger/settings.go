package messenger

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// The settings. Profile fields lie in the same table under keys of their own, so that they follow to other devices.
const (
	settingStrangers = "strangers"
	settingReceipts  = "read-receipts"
	settingPresence  = "presence"
	settingLan       = "lan-visible"

	profilePrefix   = "profile."
	profileUsername = profilePrefix + "username"
	profileNickname = profilePrefix + "nickname"
	profileField    = profilePrefix + "contact-field"
	profileBio      = profilePrefix + "bio"
)

// What strangers may do.
const (
	strangersAllow   = "allow"   // ask, and write within quota
	strangersRequest = "request" // ask
	strangersDeny    = "deny"    // nothing, unless they hold an invite token
)

const (
	on  = "on"
	off = "off"
)

// known lists the settings an owner can change, in the order they are shown.
func knownSettings() []Setting {
	onOff := []string{on, off}
	return []Setting{
		{Key: settingStrangers, Default: strangersAllow, Allowed: []string{strangersAllow, strangersRequest, strangersDeny}},
		{Key: settingReceipts, Default: on, Allowed: onOff},
		{Key: settingPresence, Default: on, Allowed: onOff},
		{Key: settingLan, Default: on, Allowed: onOff},
	}
}

// settingRow is one value and which entry said it.
type settingRow struct {
	Value string `json:"v"`
	Stamp stamp  `json:"s"`
}

// settings is the table of settings with a copy in memory, for questions that come without a transaction.
type settings struct {
	env *env

	mu      sync.Mutex // owns values
	values  map[string]string
	vaultID string // the username of the vault, until an entry says another
}

func newSettings(e *env, username string) *settings {
	return &settings{env: e, values: make(map[string]string), vaultID: username}
}

func (s *settings) load(tx *storage.Tx) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return tx.Scan(storage.ScanOptions{Prefix: []byte(keySetting)}, func(key, val []byte) (bool, error) {
		var row settingRow
		if err := json.Unmarshal(val, &row); err != nil {
			return false, fmt.Errorf("reading setting: %w: %w", errRow, err)
		}
		s.values[string(key[len(keySetting):])] = row.Value
		return true, nil
	})
}

// now gives the committed value of a setting or profile field.
func (s *settings) now(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.withDefault(key, s.values[key])
}

// at gives the value as the transaction sees it.
func (s *settings) at(tx *storage.Tx, key string) string {
	var row settingRow
	b, ok, err := getRow(tx, []byte(keySetting+key))
	if err == nil && ok && json.Unmarshal(b, &row) != nil {
		row.Value = ""
	}
	return s.withDefault(key, row.Value)
}

func (s *settings) withDefault(key, value string) string {
	for _, k := range knownSettings() {
		if k.Key == key && !slices.Contains(k.Allowed, value) {
			return k.Default
		}
	}
	return value
}

func (s *settings) strangers() string                  { return s.now(settingStrangers) }
func (s *settings) strangersAt(tx *storage.Tx) string  { return s.at(tx, settingStrangers) }
func (s *settings) on(tx *storage.Tx, key string) bool { return s.at(tx, key) == on }

func (s *settings) username() string {
	if u := s.now(profileUsername); u != "" {
		return u
	}
	return s.vaultID
}

// card is what contacts are told.
func (s *settings) card(tx *storage.Tx) *pb.Card {
	c := &pb.Card{
		Username: s.at(tx, profileUsername), Nickname: s.at(tx, profileNickname),
		ContactField: s.at(tx, profileField), Bio: s.at(tx, profileBio),
	}
	if c.Username == "" {
		c.Username = s.vaultID
	}
	return c
}

// fold applies a Setting entry and tells whether it changed anything.
func (s *settings) fold(tx *storage.Tx, e *feed.Entry, p *pb.Setting) (changed bool, err error) {
	key, value := p.GetKey(), p.GetValue()
	if key == "" || len(key) > 64 || len(value) > maxBio {
		return false, errIgnored
	}
	b, ok, err := getRow(tx, []byte(keySetting+key))
	if err != nil {
		return false, err
	}
	var row settingRow
	if ok {
		if err := json.Unmarshal(b, &row); err != nil {
			return false, fmt.Errorf("reading setting: %w: %w", errRow, err)
		}
		if !row.Stamp.before(stampOf(e)) {
			return false, nil
		}
	}
	changed = row.Value != value
	if b, err = json.Marshal(settingRow{Value: value, Stamp: stampOf(e)}); err != nil {
		return false, fmt.Errorf("writing setting: %w", err)
	}
	tx.OnCommit(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.values[key] = value
	})
	return changed, tx.Set([]byte(keySetting+key), b)
}

// Settings lists what the owner can change.
func (m *Messenger) Settings(ctx context.Context) ([]Setting, error) {
	list := knownSettings()
	for i := range list {
		list[i].Value = m.settings.now(list[i].Key)
	}
	return list, nil
}

// SetSetting changes one setting.
func (m *Messenger) SetSetting(ctx context.Context, key, value string) (Setting, error) {
	list := knownSettings()
	i := slices.IndexFunc(list, func(s Setting) bool { return s.Key == key })
	if i < 0 {
		return Setting{}, refuse(ErrNotFound, "there is no setting of that name", "`hima settings list` shows them all")
	}
	set := list[i]
	if !slices.Contains(set.Allowed, value) {
		return Setting{}, refuse(ErrInvalid, "this value is not allowed", "allowed: "+strings.Join(set.Allowed, ", "))
	}
	set.Value = value
	return set, m.env.update(ctx, func(tx *storage.Tx) error {
		if m.settings.at(tx, key) == value {
			return nil
		}
		return m.writeSetting(tx, key, value)
	})
}

func (m *Messenger) writeSetting(tx *storage.Tx, key, value string) error {
	content, err := proto.Marshal(&pb.Setting{Key: key, Value: value})
	if err != nil {
		return fmt.Errorf("writing setting: %w", err)
	}
	_, err = m.write(tx, replica.Draft{
		Conversation: m.env.self, Number: feed.Control, Kind: feed.KindSetting, Content: content,
	})
	return err
}

// settingChanged draws the consequences of a folded setting.
func (m *Messenger) settingChanged(tx *storage.Tx, key string, before string) error {
	kind := EventSettings
	if strings.HasPrefix(key, profilePrefix) {
		kind = EventProfile
	}
	if err := m.events.add(tx, plain(kind, m.env.account, feed.ConversationID{}, key)); err != nil {
		return err
	}
	tx.OnCommit(m.wake)
	switch key {
	case settingStrangers:
		tx.OnCommit(m.env.policyChanged)
		return m.policyChanged(tx, before)
	case settingPresence:
		tx.OnCommit(m.announcePresence)
	case settingReceipts:
		return m.convs.each(tx, func(row convRow) error {
			tx.OnCommit(func() { m.env.feeds.PushReceipt(row.id) })
			return nil
		})
	}
	return nil
}

// policyChanged sets the floors of those who were refused, if strangers may do more now than before (R16).
func (m *Messenger) policyChanged(tx *storage.Tx, before string) error {
	rank := func(p string) int { return slices.Index([]string{strangersDeny, strangersRequest, strangersAllow}, p) }
	if rank(m.settings.strangersAt(tx)) <= rank(before) {
		return nil
	}
	var refused []identity.AccountID
	err := tx.Scan(storage.ScanOptions{Prefix: []byte(keyRefused), KeysOnly: true}, func(key, _ []byte) (bool, error) {
		a, err := identity.AccountIDFromBytes(key[len(keyRefused):])
		if err == nil {
			refused = append(refused, a)
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, a := range refused {
		row, _, err := m.contacts.get(tx, a)
		if err != nil {
			return err
		}
		if row.Blocked {
			continue
		}
		if err := m.floor(tx, a, false); err != nil {
			return err
		}
	}
	return nil
}
