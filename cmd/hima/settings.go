package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/text"
)

func (a *app) settingsCommand() *cobra.Command {
	list := a.command(spec{use: "list", id: "settings.list", run: func(ctx context.Context, _ []string) error {
		return a.settings(ctx, "")
	}})
	get := a.command(spec{
		use: "get KEY", id: "settings.get", min: 1, max: 1, example: "  hima settings get strangers",
		run: func(ctx context.Context, args []string) error { return a.settings(ctx, args[0]) },
	})
	set := a.command(spec{
		use: "set KEY VALUE", id: "settings.set", min: 2, max: 2,
		example: "  hima settings set strangers deny\n  hima settings set read-receipts off",
		run: func(ctx context.Context, args []string) error {
			node, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer node.Close()
			resp, err := node.SetSetting(ctx, &pb.SetSettingRequest{Key: args[0], Value: args[1]})
			if err != nil {
				return err
			}
			v := settingOf(resp.GetSetting())
			if a.flags.json {
				return a.emit(v)
			}
			a.done("settings.done", "Key", v.Key, "Value", a.bold(v.Value))
			return nil
		},
	})
	return a.group("settings", "settings", list, get, set)
}

// settings shows one setting, or all for an empty key.
func (a *app) settings(ctx context.Context, key string) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ListSettings(ctx, &pb.ListSettingsRequest{})
	if err != nil {
		return err
	}
	t := a.newTable("column.setting", "column.value", "column.choices", "column.meaning")
	var known []string
	for _, s := range resp.GetSettings() {
		v := settingOf(s)
		known = append(known, v.Key)
		if key != "" && v.Key != key {
			continue
		}
		switch {
		case a.flags.json:
			if err := a.emit(v); err != nil {
				return err
			}
		case key != "":
			a.printf("%s\n", v.Value)
		default:
			t.row(v.Key, a.bold(v.Value), strings.Join(v.Allowed, ", "), a.word("setting", v.Key))
		}
		if key != "" {
			return nil
		}
	}
	if key != "" {
		return fail(control.NotFound, "error.no_such_setting", "Key", text.OneLine(key, 40), "Keys", strings.Join(known, ", "))
	}
	if !a.flags.json {
		t.print(a.out)
	}
	return nil
}
