package main

import (
	"io"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// columnGap separates two columns, in cells.
const columnGap = 2

// table prints rows in columns as wide as their widest cell, counted in terminal cells, so that Chinese names line up.
type table struct {
	a      *app
	header []string
	rows   [][]string
}

// newTable makes a table whose headings are catalogue texts.
func (a *app) newTable(ids ...string) *table {
	t := &table{a: a}
	for _, id := range ids {
		t.header = append(t.header, a.t(id))
	}
	return t
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// print writes the table. The last column is cut if the line would not fit into the terminal.
func (t *table) print(w io.Writer) {
	widths := make([]int, len(t.header))
	for _, r := range append([][]string{t.header}, t.rows...) {
		for i, c := range r {
			widths[i] = max(widths[i], ansi.StringWidth(c))
		}
	}
	limit := t.a.width()
	line := func(cells []string, style func(string) string) {
		var b strings.Builder
		used := 0
		for i, c := range cells {
			if i == len(cells)-1 {
				if limit > 0 && used+ansi.StringWidth(c) > limit {
					c = ansi.Truncate(c, max(limit-used, 1), "…")
				}
				b.WriteString(style(c))
				break
			}
			b.WriteString(style(c))
			pad := widths[i] - ansi.StringWidth(c) + columnGap
			b.WriteString(strings.Repeat(" ", pad))
			used += widths[i] + columnGap
		}
		_, _ = io.WriteString(w, strings.TrimRight(b.String(), " ")+"\n")
	}
	line(t.header, t.a.bold)
	for _, r := range t.rows {
		line(r, func(s string) string { return s })
	}
}

// showList shows what a node lists: as JSON a line each, else a table to which row adds one each. none is the text for an
// empty one.
func showList[P, V any](a *app, t *table, none string, all []P, view func(P) V, row func(V)) error {
	for _, p := range all {
		v := view(p)
		if !a.flags.json {
			row(v)
		} else if err := a.emit(v); err != nil {
			return err
		}
	}
	switch {
	case a.flags.json:
	case len(t.rows) == 0:
		a.note(none)
	default:
		t.print(a.out)
	}
	return nil
}

// fields prints names and values below each other, the values aligned, also those of several lines.
func (a *app) fields(w io.Writer, pairs ...string) {
	widest := 0
	for i := 0; i < len(pairs); i += 2 {
		widest = max(widest, ansi.StringWidth(pairs[i]))
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			continue
		}
		pad := strings.Repeat(" ", widest-ansi.StringWidth(pairs[i])+columnGap)
		value := strings.ReplaceAll(pairs[i+1], "\n", "\n"+strings.Repeat(" ", widest+columnGap))
		_, _ = io.WriteString(w, a.dim(pairs[i])+pad+value+"\n")
	}
}
