# Berth: `make run` shows it running, `make test` checks everything, `make help` lists the rest.
SHELL := /bin/sh
# Go may be installed and yet not on root's PATH.
export PATH := $(PATH):/usr/local/go/bin:/usr/lib/go/bin:/usr/sbin:/sbin
# The clone may belong to another user, whose git refuses to stamp the build.
export GOFLAGS := $(GOFLAGS) -buildvcs=false
export CGO_ENABLED ?= 0

VERSION := $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
PREFIX  ?= /usr/local
ETC     ?= /etc/berth

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: build
build: ## build bin/berth for this machine
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/berth ./cmd/berth

.PHONY: build-all
build-all: ## build for amd64 and arm64
	GOARCH=amd64 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/berth-linux-amd64 ./cmd/berth
	GOARCH=arm64 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/berth-linux-arm64 ./cmd/berth

.PHONY: run
run: ## install what the host lacks, start the agent, run examples/hello and show it
	.ci/host-packages run
	$(MAKE) build
	sh examples/hello/up.sh

.PHONY: stop
stop: ## end the pods and the agent that `make run` started
	sh examples/hello/down.sh

.PHONY: clean-host
clean-host: stop ## leave no mount, namespace, bridge, cgroup, rule or process of Berth behind
	@[ -x bin/berth ] || $(MAKE) build
	bin/berth purge --yes

.PHONY: test
test: ## install what tests need, then check everything that .ci/run checks
	.ci/host-packages test
	sh .ci/check

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	sh .ci/check lint

.PHONY: crash
crash: ## kill the agent at every failpoint (full run)
	.ci/host-packages test
	sh .ci/check crash-full

.PHONY: fuzz
fuzz: ## fuzz each parser for FUZZTIME (default 5m)
	sh .ci/check fuzz $(or $(FUZZTIME),5m)

.PHONY: bench
bench: ## measure Berth and the peer (kubelet, containerd, runc) side by side
	.ci/host-packages bench
	$(MAKE) build
	sh test/bench/run.sh

.PHONY: critest
critest: ## run critest against berth runtime on crun and runc and against containerd (CRITEST_RUNTIME, CRITEST_ROUNDS)
	.ci/host-packages test
	sh test/critest/run.sh rounds

.PHONY: cri-bench
cri-bench: ## measure the life of a pod over CRI, Berth beside containerd (20 minutes)
	.ci/host-packages bench
	sh test/peer/build.sh node critest
	$(MAKE) build
	go build -o bin/cribench ./test/cribench
	bin/cribench -critest -o docs/results/cri-bench.md

.PHONY: kubelet-on-berth
kubelet-on-berth: ## see what the upstream kubelet does on `berth runtime`, in a cluster of its own
	.ci/host-packages bench
	sh test/peer/build.sh node cluster
	$(MAKE) build
	BERTH_BIN="$(CURDIR)/bin/berth" BERTH_KUBELET_RESULTS="$(CURDIR)/docs/results/kubelet-on-berth.md" go test -count=1 -timeout 30m -parallel 4 -v ./test/kubelet

.PHONY: test-containerd
test-containerd: ## the tests of pods with containerd below the agents; writes docs/results/containerd.md (SHORT=1: a subset, in minutes)
	.ci/host-packages test
	sh test/peer/build.sh containerd
	$(MAKE) build
	go build -trimpath -tags failpoints -o bin/berth-failpoints ./cmd/berth
	BERTH_BIN="$(CURDIR)/bin/berth" BERTH_FAILPOINT_BIN="$(CURDIR)/bin/berth-failpoints" go run ./test/over -runtime $(or $(OVER),containerd) \
		$(if $(SHORT),-short,$(if $(OVER),,-page docs/results/containerd.md) $(if $(LEDGER),-ledger $(LEDGER))) -commit "$(VERSION)"

.PHONY: cluster
cluster: ## start a control plane on loopback until ^C
	sh test/peer/build.sh cluster
	go run ./test/cluster/cmd

.PHONY: fields
fields: ## see what every field of a pod does, on this host (FIELDS=pattern chooses cases)
	.ci/host-packages test
	$(MAKE) build
	BERTH_BIN="$(CURDIR)/bin/berth" go test -count=1 -timeout 1h -parallel 8 -run 'TestFields/(crun|runc)/case/$(or $(FIELDS),.)' ./test/fields

.PHONY: vm
vm: ## check Berth under systemd on cgroup v2, v1 and hybrid in an emulated machine, then every field of a pod (hours)
	sh test/vm/check.sh $(VM)
	$(if $(filter v2 v1,$(or $(VM),v2 v1)),sh test/vm/fields.sh $(filter v2 v1,$(or $(VM),v2 v1)))

.PHONY: install
install: build ## install the binary, the systemd units and a commented configuration
	install -D -m 0755 bin/berth $(DESTDIR)$(PREFIX)/bin/berth
	install -d -m 0755 $(DESTDIR)$(ETC) $(DESTDIR)$(ETC)/manifests $(DESTDIR)$(ETC)/certs.d
	[ -e $(DESTDIR)$(ETC)/config.yaml ] || { bin/berth config default >$(DESTDIR)$(ETC)/config.yaml.new && mv $(DESTDIR)$(ETC)/config.yaml.new $(DESTDIR)$(ETC)/config.yaml; }
	mkdir -p $(DESTDIR)/lib/systemd/system
	for u in berth berth-runtime; do sed 's|@PREFIX@|$(PREFIX)|g; s|@ETC@|$(ETC)|g' cmd/berth/$$u.service >$(DESTDIR)/lib/systemd/system/$$u.service; done
	@echo "installed; start it with: systemctl daemon-reload && systemctl enable --now berth   (beside a kubelet: berth-runtime)"

.PHONY: uninstall
uninstall: ## remove what install put in place (configuration and pods stay)
	rm -f $(DESTDIR)$(PREFIX)/bin/berth $(DESTDIR)/lib/systemd/system/berth.service $(DESTDIR)/lib/systemd/system/berth-runtime.service
