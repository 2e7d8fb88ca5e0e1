package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/internal/client"
)

func imagesCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "images ls|pull|import|rm|verify",
		Aliases: []string{"image"},
		Short:   "List, fetch, import, remove and verify images",
		Example: "  berth images ls\n  berth images pull docker.io/library/nginx:1.27\n  berth images import app.tar\n  berth images rm docker.io/library/nginx:1.27",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(getImagesCommand(a, "ls", "list"), imagesPullCommand(a), imagesImportCommand(a), imagesRemoveCommand(a), imagesVerifyCommand(a))
	return cmd
}

func imagesPullCommand(a *app) *cobra.Command {
	var user string
	var passwordStdin bool
	cmd := &cobra.Command{
		Use:     "pull REF...",
		Short:   "Fetch images from their registries",
		Example: "  berth images pull docker.io/library/busybox:1.36\n  pass show registry | berth images pull --username me --password-stdin registry.example.com/app:1",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			login, err := a.login(user, passwordStdin)
			if err != nil {
				return err
			}
			for _, ref := range args {
				if err := a.pull(cmd.Context(), ref, login); err != nil {
					return fmt.Errorf("%s: %w", ref, err)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&user, "username", "u", "", "name at the registry")
	cmd.Flags().BoolVar(&passwordStdin, "password-stdin", false, "read the password from standard input")
	return cmd
}

func (a *app) login(user string, passwordStdin bool) (*client.Login, error) {
	if user == "" && !passwordStdin {
		return nil, nil
	}
	if user == "" || !passwordStdin {
		return nil, errors.New("--username and --password-stdin go together")
	}
	password, err := io.ReadAll(io.LimitReader(a.In, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("reading the password: %w", err)
	}
	return &client.Login{Username: user, Password: strings.TrimRight(string(password), "\r\n")}, nil
}

func (a *app) pull(ctx context.Context, ref string, login *client.Login) error {
	p := newProgress(ctx, a)
	image, err := a.client().Pull(ctx, ref, login, p.show)
	p.end()
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "%s pulled (%s, %s)\n", ref, size(image.Size), image.ID)
	return nil
}

func imagesImportCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "import FILE|-",
		Short:   "Import images from an OCI or docker archive",
		Example: "  berth images import app.tar\n  docker save app:1 | berth images import -",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			archive := a.In
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				archive = f
			}
			p := newProgress(cmd.Context(), a)
			images, err := a.client().Import(cmd.Context(), archive, p.show)
			p.end()
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			for _, i := range images {
				name := i.ID
				if len(i.Tags) > 0 {
					name = strings.Join(i.Tags, " ")
				}
				fmt.Fprintf(a.Out, "%s imported (%s)\n", name, size(i.Size))
			}
			return nil
		},
	}
}

func imagesRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "rm IMAGE...", Aliases: []string{"remove", "delete"},
		Short:             "Remove images by tag, digest or ID",
		Example:           "  berth images rm docker.io/library/busybox:1.36",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			var failures error
			for _, ref := range args {
				if err := a.client().RemoveImage(cmd.Context(), ref); err != nil {
					failures = errors.Join(failures, fmt.Errorf("%s: %w", ref, err))
					continue
				}
				fmt.Fprintf(a.Out, "%s removed\n", ref)
			}
			return failures
		},
	}
}

func imagesVerifyCommand(a *app) *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare stored images with their digests, and mend what is damaged",
		Long: `Reads all stored content and compares its digests, and compares each unpacked layer with what its blob says.
With --repair a damaged blob is fetched again, it alone, and a damaged layer is unpacked again. What running containers
stand on is only reported. Exits with 1 while something is damaged.`,
		Example: "  berth images verify\n  berth images verify --repair",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p := newProgress(cmd.Context(), a)
			found, err := a.client().VerifyImages(cmd.Context(), repair, p.show)
			p.end()
			if err != nil {
				return err
			}
			for _, d := range found {
				fmt.Fprintf(a.Out, "%s: %s", d.Digest, d.Why)
				if len(d.Images) > 0 {
					fmt.Fprintf(a.Out, " (%s)", strings.Join(d.Images, " "))
				}
				fmt.Fprintln(a.Out)
			}
			switch {
			case len(found) == 0:
				fmt.Fprintln(a.Out, "all images are sound")
			case !repair:
				return fmt.Errorf("%d damaged: `berth images verify --repair` mends what it can", len(found))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "mend what is damaged")
	return cmd
}
