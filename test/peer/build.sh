#!/bin/sh
# build.sh [node] [containerd] [plugins] [critest] [cluster] [umoci]: builds the peers and the suites from the Go module proxy into $PEER/bin.
# Without a word: node. Nothing is done for what is there already. Minutes on two cores, each, the first time.
#
#   node     kubelet, containerd, its shim, ctr, runc, and the plugins
#   containerd  the same without the kubelet
#   plugins  the CNI plugins alone
#   runc     runc alone
#   critest  critest, crictl, and ginkgo, which runs critest's parallel form
#   cluster  etcd, the control plane, kubectl
#   umoci    umoci, whose unpacked trees are what ours are compared with
set -eu
PEER=${PEER:-$HOME/.cache/berth-peer}
K8S=${K8S:-1.36.3} CONTAINERD=${CONTAINERD:-v2.4.2} RUNC=${RUNC:-v1.5.2} PLUGINS=${PLUGINS:-v1.9.1} CRITOOLS=${CRITOOLS:-v1.36.0} ETCD=${ETCD:-v3.6.8} UMOCI=${UMOCI:-v0.6.0}
export PATH="$PATH:/usr/local/go/bin:/usr/lib/go/bin:/usr/sbin:/sbin"
mkdir -p "$PEER/bin"
export GOBIN="$PEER/bin" GOFLAGS=-trimpath
have() { [ -x "$PEER/bin/$1" ]; }
# source_of MODULE VERSION: a writable copy of a module's source in $src, removed by the caller.
source_of() {
	(cd / && go mod download "$1@$2")
	src=$(mktemp -d "$PEER/src.XXXXXX")
	cp -r "$(go env GOMODCACHE)/$1@$2/." "$src"
	chmod -R u+w "$src"
	rm -rf "$src/vendor" "$src/go.work" "$src/go.work.sum"
}
kubernetes() { # kubernetes COMMAND...: builds those that are not there
	missing=""
	for c in "$@"; do have "$c" || missing="$missing $c"; done
	[ -n "$missing" ] || return 0
	echo "building$missing $K8S"
	source_of k8s.io/kubernetes "v$K8S"
	(
		cd "$src"
		for m in $(sed -n '/^replace/,$p' go.mod | grep -oE 'k8s.io/[a-z0-9-]+ =>' | cut -d' ' -f1); do
			go mod edit -replace "$m=$m@v0.${K8S#1.}"
		done
		v=k8s.io/component-base/version
		for c in $missing; do
			CGO_ENABLED=0 GOFLAGS=-mod=mod go build -ldflags "-s -w -X $v.gitVersion=v$K8S -X $v.gitMajor=1 -X $v.gitMinor=36" -o "$PEER/bin/$c.new" "./cmd/$c"
			mv "$PEER/bin/$c.new" "$PEER/bin/$c"
		done
	)
	rm -rf "$src"
}
build_runc() {
	have runc || {
		echo "building runc $RUNC"
		CGO_ENABLED=1 go install -tags seccomp "github.com/opencontainers/runc@$RUNC"
	}
}
build_plugins() {
	for p in main/bridge main/loopback main/ptp ipam/host-local ipam/static meta/portmap meta/firewall meta/bandwidth meta/tuning; do
		have "$(basename $p)" || CGO_ENABLED=0 go install "github.com/containernetworking/plugins/plugins/$p@$PLUGINS"
	done
}
build_containerd() {
	have containerd || {
		echo "building containerd $CONTAINERD"
		CGO_ENABLED=0 go install "github.com/containerd/containerd/v2/cmd/containerd@$CONTAINERD" "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@$CONTAINERD" "github.com/containerd/containerd/v2/cmd/ctr@$CONTAINERD"
	}
	build_runc
	build_plugins
}
build_node() {
	build_containerd
	kubernetes kubelet
}
build_critest() {
	! have critest || ! have crictl || ! have ginkgo || return 0
	echo "building critest and crictl $CRITOOLS"
	source_of sigs.k8s.io/cri-tools "$CRITOOLS"
	(
		cd "$src"
		export CGO_ENABLED=0 GOFLAGS=-mod=mod
		GOFLAGS=-trimpath go install "github.com/onsi/ginkgo/v2/ginkgo@$(go list -m -f '{{.Version}}' github.com/onsi/ginkgo/v2)"
		go test -c -o "$PEER/bin/critest" ./cmd/critest
		go build -ldflags "-X sigs.k8s.io/cri-tools/pkg/version.Version=$CRITOOLS" -o "$PEER/bin/crictl" ./cmd/crictl
	)
	rm -rf "$src"
}
build_cluster() {
	have etcd || {
		echo "building etcd $ETCD"
		src=$(mktemp -d "$PEER/src.XXXXXX")
		(
			cd "$src"
			printf 'module etcd\ngo 1.26\n' >go.mod
			printf 'package main\n\nimport (\n\t"os"\n\n\t"go.etcd.io/etcd/server/v3/etcdmain"\n)\n\nfunc main() { etcdmain.Main(os.Args) }\n' >main.go
			go get "go.etcd.io/etcd/server/v3@$ETCD"
			CGO_ENABLED=0 GOFLAGS=-mod=mod go build -o "$PEER/bin/etcd" .
		)
		rm -rf "$src"
	}
	kubernetes kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet
}
build_umoci() {
	have umoci || {
		echo "building umoci $UMOCI"
		source_of github.com/opencontainers/umoci "$UMOCI"
		(cd "$src" && CGO_ENABLED=0 GOFLAGS=-mod=mod go build -o "$PEER/bin/umoci" ./cmd/umoci)
		rm -rf "$src"
	}
}
[ $# -gt 0 ] || set -- node
for what in "$@"; do
	case $what in
	node | containerd | plugins | runc | critest | cluster | umoci) "build_$what" ;;
	*)
		echo "build.sh: nothing is called '$what'" >&2
		exit 2
		;;
	esac
done
echo "built into $PEER/bin"
