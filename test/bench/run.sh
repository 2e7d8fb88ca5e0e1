#!/bin/sh
# run.sh: builds the peer if it is not there, then measures both sides. Called by `make bench` from the top of the clone.
set -eu
sh test/peer/build.sh
mkdir -p docs/results
commit=$(git -c safe.directory='*' rev-parse --short HEAD 2>/dev/null || echo unknown)
go build -o bin/bench ./test/bench
bin/bench -o "docs/results/bench-$commit.json" "$@" | tee "docs/results/bench-$commit.txt"
