// Command cluster starts a control plane on loopback, prints how to reach it,
// and ends it when it is told to end.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/berthd/berth/test/cluster"
)

func main() {
	dir := flag.String("dir", "", "where the cluster lies (default: a new directory, removed at the end)")
	bin := flag.String("bin", cluster.DefaultBin(), "directory of the programs")
	pods := flag.String("pod-cidr", "", "where nodes' pod ranges are taken from")
	flag.Parse()
	if err := run(cluster.Config{Dir: *dir, Bin: *bin, PodCIDR: *pods}); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(cfg cluster.Config) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	if cfg.Dir == "" {
		dir, err := os.MkdirTemp("/tmp", "berth-cluster-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		cfg.Dir = dir
	}
	c, err := cluster.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Stop()
	node, err := c.Kubeconfig("system:node:"+hostname(), "system:nodes")
	if err != nil {
		return err
	}
	fmt.Printf("the cluster answers at %s; end it with ^C\n  export KUBECONFIG=%s\n  kubeconfig of a node called %s: %s\n", c.Server, c.Admin, hostname(), node)
	<-ctx.Done()
	return nil
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "node"
	}
	return name
}
