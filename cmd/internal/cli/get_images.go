package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/internal/client"
)

// getImagesCommand is both `berth get images` and `berth images ls`.
func getImagesCommand(a *app, name string, aliases ...string) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use: name, Aliases: aliases,
		Short:   "List the images on this node",
		Example: "  berth get images\n  berth images ls -o name",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			images, err := a.client().Images(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.printImages(images, out); err != nil || out != "" && out != "wide" {
				return err
			}
			return a.printRefused(cmd.Context())
		},
	}
	out.register(cmd, "json", "yaml", "wide", "name")
	return cmd
}

// printRefused tells which files of the import folder hold no images, and why.
func (a *app) printRefused(ctx context.Context) error {
	files, err := a.client().ImportFolder(ctx)
	for _, f := range files {
		if f.Error != "" {
			fmt.Fprintf(a.Err, "%s is not imported: %s\n", f.Name, f.Error)
		}
	}
	return err
}

func (a *app) printImages(images []client.Image, out output) error {
	if images == nil {
		images = []client.Image{}
	}
	list := struct {
		APIVersion string         `json:"apiVersion"`
		Kind       string         `json:"kind"`
		Items      []client.Image `json:"items"`
	}{"v1", "List", images}
	if done, err := out.object(a.Out, list); done {
		return err
	}
	t := table{w: a.Out, head: []string{"IMAGE", "TAG", "IMAGE ID", "SIZE", "IN USE"}}
	if out == "wide" {
		t.head = append(t.head, "DIGEST")
	}
	for _, i := range images {
		names := i.Tags
		if len(names) == 0 {
			names = i.Digests
		}
		if len(names) == 0 {
			names = []string{i.ID}
		}
		for _, n := range names {
			if out == "name" {
				fmt.Fprintln(a.Out, n)
				continue
			}
			t.rows = append(t.rows, imageCells(i, n, out == "wide"))
		}
	}
	if out == "name" {
		return nil
	}
	if len(t.rows) == 0 {
		fmt.Fprintln(a.Err, "No images on this node: `berth images pull REF` or `berth images import FILE` gets one.")
		return nil
	}
	slices.SortFunc(t.rows, slices.Compare)
	return t.flush()
}

func imageCells(i client.Image, name string, wide bool) []string {
	repo, tag := name, "<none>"
	if at := strings.IndexByte(name, '@'); at >= 0 {
		repo = name[:at]
	} else if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		repo, tag = name[:colon], name[colon+1:]
	}
	id := strings.TrimPrefix(i.ID, "sha256:")
	use := "-"
	if i.InUse > 0 {
		use = fmt.Sprint(i.InUse)
	}
	cells := []string{repo, tag, id[:min(13, len(id))], size(i.Size), use}
	if wide {
		digest := "<none>"
		if len(i.Digests) > 0 {
			_, digest, _ = strings.Cut(i.Digests[0], "@")
		}
		cells = append(cells, digest)
	}
	return cells
}
