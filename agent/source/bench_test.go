package source

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/berthd/berth/agent/pod"
)

// BenchmarkRename measures from the rename of a manifest into a directory of
// 110 to its pod's delivery.
func BenchmarkRename(b *testing.B) {
	dir, away := b.TempDir(), b.TempDir()
	for i := range 110 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("p%d.yaml", i)), []byte(manifest(fmt.Sprintf("p%d", i), "i")), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	got := make(chan int, 100)
	s, err := New(Config{Node: "n", Root: b.TempDir(), Paths: []string{dir}, Logger: slog.New(slog.DiscardHandler),
		Deliver: func(src pod.Source, pods []pod.Desired) {
			if src == pod.SourceFile {
				got <- len(pods)
			}
		}})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(b.Context()) }()
	for n := 0; n < 110; {
		n = <-got
	}
	target := filepath.Join(dir, "extra.yaml")
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		from := filepath.Join(away, "x")
		if err := os.WriteFile(from, []byte(manifest("extra", fmt.Sprint("i:", i))), 0o644); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := os.Rename(from, target); err != nil {
			b.Fatal(err)
		}
		<-got
	}
}
