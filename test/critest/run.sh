#!/bin/sh
# run.sh [short|rounds|page|benchmark]: critest against `berth runtime`, and against containerd on the same machine.
#
#   short      one round on CRITEST_RUNTIME (default crun), of CRITEST_MODE (default parallel), within minutes; what failed is printed, its logs are kept
#   rounds     the rounds that the ledger docs/results/critest.txt lacks for this code, then docs/results/critest.md (default)
#   page       docs/results/critest.md anew; it fails if Berth does not pass what containerd passes
#   benchmark  critest's own benchmarks of Berth and of containerd, into docs/results/critest-benchmark.md
#
# CRITEST_RUNTIME: which of crun, runc, runc-peer, containerd, with commas (default of rounds: crun,runc,runc-peer,containerd)
# CRITEST_ROUNDS:  do at most so many rounds of each now (default: all that are lacking)
# CRITEST_JOBS:    how many runtimes at the same time (default 1)
# BERTH_BIN:       the program that is tested (default: built now)
set -eu
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/local/go/bin:/usr/lib/go/bin:/usr/sbin:/sbin"
export GOFLAGS="${GOFLAGS:-} -buildvcs=false" CGO_ENABLED=0
peer=${PEER:-$HOME/.cache/berth-peer}
what=${1:-rounds}
runtimes=${CRITEST_RUNTIME:-crun}
if [ "$what" != short ]; then
	runtimes=${CRITEST_RUNTIME:-crun,runc,runc-peer,containerd}
fi
if [ "$what" != page ]; then
	sh test/peer/build.sh critest
	case $runtimes in *containerd*) sh test/peer/build.sh node ;; *peer*) sh test/peer/build.sh runc ;; esac
fi
mkdir -p bin
if [ "$what" = page ]; then
	BERTH_BIN=""
elif [ -z "${BERTH_BIN:-}" ]; then
	BERTH_BIN="$PWD/bin/berth"
	go build -trimpath -ldflags '-s -w' -o "$BERTH_BIN" ./cmd/berth
fi
go build -trimpath -o bin/critest ./test/critest
commit=$(git -c safe.directory='*' rev-parse --short HEAD)
[ -z "$(git -c safe.directory='*' status --porcelain -- cri cni cmd go.mod)" ] || commit="$commit-dirty"
exec bin/critest -berth "$BERTH_BIN" -peer "$peer/bin" -runtimes "$runtimes" -commit "$commit" -limit "${CRITEST_ROUNDS:-0}" -jobs "${CRITEST_JOBS:-1}" -mode "${CRITEST_MODE:-parallel}" "$what"
