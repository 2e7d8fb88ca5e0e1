#!/bin/sh
# build.sh: builds the peer node (kubelet, containerd, its shim, runc, CNI plugins) from the Go module proxy into $PEER/bin.
# Ten minutes on two cores the first time; nothing when all is there.
set -eu
PEER=${PEER:-$HOME/.cache/berth-peer}
K8S=${K8S:-1.36.3} CONTAINERD=${CONTAINERD:-v2.4.2} RUNC=${RUNC:-v1.5.2} PLUGINS=${PLUGINS:-v1.9.1}
mkdir -p "$PEER/bin"
export GOBIN="$PEER/bin" GOFLAGS=-trimpath
have() { [ -x "$PEER/bin/$1" ]; }
cd /
if ! have containerd; then
	echo "building containerd $CONTAINERD"
	CGO_ENABLED=0 go install "github.com/containerd/containerd/v2/cmd/containerd@$CONTAINERD" "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@$CONTAINERD" "github.com/containerd/containerd/v2/cmd/ctr@$CONTAINERD"
fi
if ! have runc; then
	echo "building runc $RUNC"
	CGO_ENABLED=1 go install -tags seccomp "github.com/opencontainers/runc@$RUNC"
fi
for p in main/bridge main/loopback ipam/host-local meta/portmap meta/firewall; do
	have "$(basename $p)" || CGO_ENABLED=0 go install "github.com/containernetworking/plugins/plugins/$p@$PLUGINS"
done
if ! have kubelet; then
	echo "building kubelet $K8S"
	go mod download "k8s.io/kubernetes@v$K8S"
	src=$PEER/src
	rm -rf "$src"
	cp -r "$(go env GOMODCACHE)/k8s.io/kubernetes@v$K8S" "$src"
	chmod -R u+w "$src"
	cd "$src"
	rm -rf vendor go.work go.work.sum
	for m in $(sed -n '/^replace/,$p' go.mod | grep -oE 'k8s.io/[a-z0-9-]+ =>' | cut -d' ' -f1); do
		go mod edit -replace "$m=$m@v0.${K8S#1.}"
	done
	v=k8s.io/component-base/version
	CGO_ENABLED=0 GOFLAGS=-mod=mod go build -ldflags "-s -w -X $v.gitVersion=v$K8S -X $v.gitMajor=1 -X $v.gitMinor=36" -o "$PEER/bin/kubelet" ./cmd/kubelet
	cd /
	rm -rf "$src"
fi
echo "the peer is in $PEER/bin"
