package messenger

import (
	"context"
	"errors"
	"slices"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Profile says what the owner says of themselves.
func (m *Messenger) Profile(ctx context.Context) (Profile, error) {
	return Profile{
		Account: m.env.account, Device: m.env.device, Username: m.settings.username(),
		Nickname: m.settings.now(profileNickname), ContactField: m.settings.now(profileField),
		Bio: m.settings.now(profileBio), Names: m.nameStates(),
	}, nil
}

// SetProfile changes what is not nil and sends the new card to all contacts. A username is claimed on the joined networks
// first; one that somebody else has there is refused, and nothing changes.
func (m *Messenger) SetProfile(ctx context.Context, c ProfileChange) (Profile, error) {
	changes := make(map[string]string)
	if c.Username != nil {
		u, err := text.Username(*c.Username)
		if err != nil {
			return Profile{}, refuse(ErrInvalid, err.Error(), "")
		}
		changes[profileUsername] = u
	}
	for key, v := range map[string]*string{profileNickname: c.Nickname, profileField: c.ContactField, profileBio: c.Bio} {
		if v == nil {
			continue
		}
		if text.Valid(*v) != nil {
			return Profile{}, refuse(ErrInvalid, "the text is not valid UTF-8", "")
		}
		changes[key] = cleanField(key, *v)
	}
	unclaim := func() {}
	if name, ok := changes[profileUsername]; ok {
		var err error
		if unclaim, err = m.claim(ctx, name); err != nil {
			return Profile{}, err
		}
	}
	err := m.env.update(ctx, func(tx *storage.Tx) error {
		for _, key := range []string{profileUsername, profileNickname, profileField, profileBio} {
			value, ok := changes[key]
			if !ok || m.settings.at(tx, key) == value || key == profileUsername && value == m.settings.username() {
				delete(changes, key)
				continue
			}
			if err := m.writable(tx, m.env.self); err != nil {
				return err
			}
			if err := m.writeSetting(tx, key, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		unclaim()
		return Profile{}, err
	}
	if len(changes) > 0 {
		if err := m.sendCards(ctx); err != nil {
			return Profile{}, err
		}
	}
	return m.Profile(ctx)
}

func cleanField(key, v string) string {
	switch key {
	case profileNickname:
		return text.Nickname(v)
	case profileField:
		return text.OneLine(v, maxField)
	}
	return text.Message(clip(v, maxBio))
}

// cardsPerUpdate bounds one transaction; a profile may have thousands of contacts.
const cardsPerUpdate = 100

// sendCards writes the present card into the conversation of every contact. A contact whose conversation is read-only
// gets it when a newer version of hima runs here.
func (m *Messenger) sendCards(ctx context.Context) error {
	var accounts []identity.AccountID
	err := m.env.db.View(func(tx *storage.Tx) error {
		return m.contacts.each(tx, func(a identity.AccountID, row contactRow) error {
			if row.State == pb.ContactState_STATE_CONTACT {
				accounts = append(accounts, a)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(accounts, cardsPerUpdate) {
		err := m.env.update(ctx, func(tx *storage.Tx) error {
			card := &pb.CardUpdate{Card: m.settings.card(tx)}
			for _, a := range chunk {
				if _, err := m.writeControl(tx, a, feed.KindCardUpdate, card); ignoreReadOnly(err) != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// LanProfile is what people on the LAN are told, if the owner wants to be seen.
func (m *Messenger) LanProfile() (username, nickname string, visible bool) {
	return m.settings.username(), m.settings.now(profileNickname), m.settings.now(settingLan) == on
}

// flushEvery is how often read positions are written for other own devices: reading is frequent, and only the newest
// position of a conversation counts.
const flushEvery = 10 * time.Second

// countDelay gathers how many members of a group have a message before that is told.
const countDelay = time.Second

// forgetEvery is how often expired idempotency keys are removed.
const forgetEvery = time.Hour

// upkeepDelay gathers changes before grants are taken back and a snapshot is left, upkeepRetry is the pause after a
// mailbox that did not answer, or a branch that could not be said again.
const (
	upkeepDelay = 20 * time.Second
	upkeepRetry = 5 * time.Minute
)

// Run does what is done in the background, until ctx ends: it writes read positions, forgets old idempotency keys, takes
// grants back and keeps the snapshot at the mailboxes new.
func (m *Messenger) Run(ctx context.Context) error {
	flush, forget := time.NewTicker(flushEvery), time.NewTicker(forgetEvery)
	defer flush.Stop()
	defer forget.Stop()
	upkeep := time.NewTimer(upkeepDelay)
	defer upkeep.Stop()
	due := true // upkeep runs
	var count <-chan time.Time
	for {
		var err error
		select {
		case <-ctx.Done():
			// The last positions are worth one more commit; storage is closed after us.
			return m.positions.flush(context.WithoutCancel(ctx), m)
		case <-flush.C:
			err = m.positions.flush(ctx, m)
		case <-m.counted.woken:
			if count == nil {
				count = time.After(countDelay)
			}
		case <-count:
			count = nil
			err = m.flushCounts(ctx)
		case <-forget.C:
			err = m.env.update(ctx, m.sender.forget)
		case <-m.cut:
			if err = m.sayCuts(ctx); err != nil {
				time.AfterFunc(upkeepRetry, m.wakeCut) // as on a disk that was full for a moment
			}
		case <-m.woken:
			if !due {
				upkeep.Reset(upkeepDelay)
				due = true
			}
		case <-upkeep.C:
			due = false
			if err = errors.Join(m.takeBack(ctx), m.keepSnapshot(ctx)); err != nil {
				upkeep.Reset(upkeepRetry)
				due = true
			}
		}
		if err != nil && ctx.Err() == nil {
			m.env.log.Warn("working in the background", "error", err)
		}
	}
}

// wakeCut asks for what stands on branches under former keys to be said again.
func (m *Messenger) wakeCut() {
	select {
	case m.cut <- struct{}{}:
	default:
	}
}

// wake asks for upkeep, soon.
func (m *Messenger) wake() {
	select {
	case m.woken <- struct{}{}:
	default:
	}
}
