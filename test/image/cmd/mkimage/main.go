// Command mkimage writes the busybox image that the examples use as an OCI archive.
//
//	mkimage -o FILE NAME...
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/berthd/berth/test/image"
)

func main() {
	out := flag.String("o", "busybox.tar", "the archive to write")
	flag.Parse()
	if err := write(*out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func write(out string, names []string) error {
	if len(names) == 0 {
		return fmt.Errorf("name at least one image reference, such as docker.io/library/busybox:1.36")
	}
	spec, err := image.BusyboxSpec(names...)
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	if err := image.WriteOCI(f, spec); err != nil {
		f.Close()
		return fmt.Errorf("write %s: %w", out, err)
	}
	return f.Close()
}
