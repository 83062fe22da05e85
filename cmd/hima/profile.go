package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hima/internal/control/pb"
	"hima/internal/text"
)

func (a *app) whoamiCommand() *cobra.Command {
	return a.command(spec{use: "whoami", id: "whoami", run: a.whoami})
}

func (a *app) whoami(ctx context.Context, _ []string) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.Whoami(ctx, &pb.WhoamiRequest{})
	if err != nil {
		return err
	}
	return a.showProfile(profileOf(resp.GetProfile()))
}

func (a *app) showProfile(v profileView) error {
	if a.flags.json {
		return a.emit(v)
	}
	password := a.t("word.yes")
	if !v.HasPassword {
		password = a.t("word.no")
	}
	pairs := []string{
		a.t("field.username"), v.Username,
		a.t("field.nickname"), v.Nickname,
		a.t("field.contact_field"), v.ContactField,
		a.t("field.bio"), v.Bio,
		a.t("field.account"), v.Account,
		a.t("field.device"), v.Device,
		a.t("field.password"), password,
		a.t("field.invite"), v.Invite,
	}
	for _, n := range v.Names {
		pairs = append(pairs, a.t("field.name_on", "Network", n.Network), a.nameStanding(n))
	}
	a.fields(a.out, pairs...)
	for _, n := range v.Names {
		a.hint(a.nameHint(n))
	}
	return nil
}

func (a *app) profileCommand() *cobra.Command {
	show := a.command(spec{use: "show", id: "profile.show", run: a.whoami})
	var nickname, contactField, bio, username, qq string
	var set *cobra.Command
	set = a.command(spec{
		use: "set [KEY VALUE] [--nickname N] [--contact-field QQ:12345] [--bio TEXT] [--username U]", id: "profile.set", max: 2,
		example: "  hima profile set --nickname 小葵 --qq 12345\n  hima profile set username alice2",
		run: func(ctx context.Context, args []string) error {
			if err := profileKey(set, args); err != nil {
				return err
			}
			changed := func(flag string, v *string) *string {
				if set.Flags().Changed(flag) {
					return v
				}
				return nil
			}
			if set.Flags().Changed("qq") {
				if set.Flags().Changed("contact-field") {
					return usage("usage.exclusive", "First", "--qq", "Second", "--contact-field")
				}
				var err error
				if contactField, err = qqField(qq); err != nil {
					return err
				}
			}
			req := &pb.SetProfileRequest{
				Nickname: changed("nickname", &nickname), ContactField: changed("contact-field", &contactField),
				Bio: changed("bio", &bio), Username: changed("username", &username),
			}
			if set.Flags().Changed("qq") {
				req.ContactField = &contactField
			}
			if req.Nickname == nil && req.ContactField == nil && req.Bio == nil && req.Username == nil {
				return usage("usage.profile_set").withHint("hint.help")
			}
			return a.setProfile(ctx, req)
		},
	})
	set.Flags().StringVar(&nickname, "nickname", "", "flag.register.nickname")
	set.Flags().StringVar(&contactField, "contact-field", "", "flag.register.contact-field")
	set.Flags().StringVar(&qq, "qq", "", "flag.register.qq")
	set.Flags().StringVar(&bio, "bio", "", "flag.bio")
	set.Flags().StringVarP(&username, "username", "u", "", "flag.profile.username")
	set.ValidArgsFunction = cobra.FixedCompletions(profileKeys(), cobra.ShellCompDirectiveNoFileComp)
	return a.group("profile", "profile", show, set)
}

// profileKeys are what "profile set KEY VALUE" takes: the names of the flags.
func profileKeys() []string { return []string{"username", "nickname", "contact-field", "qq", "bio"} }

// profileKey takes "username alice" for "--username alice".
func profileKey(set *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case !slices.Contains(profileKeys(), args[0]):
		return usage("usage.profile_key", "Key", text.OneLine(args[0], 40), "Keys", strings.Join(profileKeys(), ", "))
	case len(args) == 1:
		return usage("usage.missing", "Usage", set.UseLine()).withHint("hint.help")
	case set.Flags().Changed(args[0]):
		return usage("usage.exclusive", "First", args[0], "Second", "--"+args[0])
	}
	return set.Flags().Set(args[0], args[1])
}

func (a *app) setProfile(ctx context.Context, req *pb.SetProfileRequest) error {
	if req.Username != nil {
		u, err := a.username(req.GetUsername())
		if err != nil {
			return err
		}
		req.Username = &u
	}
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.SetProfile(ctx, req)
	if err != nil {
		return nameTaken(err, req.GetUsername())
	}
	if a.flags.quiet && !a.flags.json {
		return nil
	}
	return a.showProfile(profileOf(resp.GetProfile()))
}

// qqField makes the contact field of a QQ number: 5 to 12 digits, with or without its prefix. Empty means none.
func qqField(number string) (string, error) {
	if number == "" {
		return "", nil
	}
	digits := strings.TrimPrefix(strings.TrimPrefix(number, "QQ:"), "qq:")
	if len(digits) < 5 || len(digits) > 12 || strings.Trim(digits, "0123456789") != "" {
		return "", usage("usage.qq", "Value", text.OneLine(number, 40))
	}
	return "QQ:" + digits, nil
}
