# Weir. `make help` lists the targets; `make` alone builds ./bin/weir.
SHELL := /bin/bash
.DEFAULT_GOAL := build

GO      ?= go
BIN     := bin
# Root is needed to load eBPF programs and make network namespaces. Tests are
# compiled as you and only run through sudo, so that caches stay yours.
SUDO    := $(if $(filter 0,$(shell id -u)),,sudo -E)
EXEC    := $(if $(SUDO),-exec "$(SUDO)",)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 20s
ARCH     ?= $(shell $(GO) env GOARCH)
GOLANGCI := $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# What each target needs from Debian.
NEED_GENERATE := clang-14 llvm-14 clang-format-14 protobuf-compiler
NEED_TEST     := iproute2 nftables nginx-light procps unbound dnsmasq-base bind9 bind9-dnsutils dnsperf curl musl-tools gcc
NEED_RACE     := $(NEED_TEST) gcc libc6-dev
NEED_CLUSTER  := containerd runc containernetworking-plugins iptables nftables iproute2
NEED_DEMO     := iproute2 nftables nginx-light dnsmasq-base curl procps
NEED_BENCH    := $(NEED_TEST) curl haproxy wrk python3-pip unbound dnsmasq-base dnsperf

.PHONY: help
help: ## This list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST) | { [ -t 1 ] && cat || sed 's/\x1b\[[0-9;]*m//g'; }

.PHONY: build
build: ## Build ./bin/weir (Go only: generated eBPF objects are committed)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/weir ./cmd/weir

.PHONY: generate
generate: ## Compile the eBPF programs and generate Go from C and protobuf
	@./deploy/debian $(NEED_GENERATE)
	$(GO) generate ./...

.PHONY: test
test: build ## Every test, on this kernel (root or sudo)
	@./deploy/debian $(NEED_TEST)
	WEIR_BIN=$(CURDIR)/$(BIN)/weir $(GO) test $(EXEC) -timeout 20m ./...

.PHONY: test-kube
test-kube: $(BIN)/cluster ## What needs a Kubernetes API server (built from Go modules, once, in some minutes)
	$(BIN)/cluster build apiserver
	WEIR_TEST_KUBE=1 $(GO) test -timeout 10m ./deploy/crds/... ./kube/... ./cmd/weir/...
	WEIR_TEST_KUBE=1 $(GO) test $(EXEC) -timeout 10m -run 'TestForbiddenKind' ./test

.PHONY: race
race: ## The pure and the concurrent packages under the race detector
	@./deploy/debian $(NEED_RACE)
	$(GO) test $(EXEC) -race -timeout 20m ./identity/... ./policy/... ./flow/... ./kube/... ./proxy/... ./endpoint/...

.PHONY: lint
lint: ## gofmt, vet, staticcheck, the import arrow, clang-format
	$(GOLANGCI) run ./...
	@./deploy/debian clang-format-14
	clang-format-14 --dry-run --Werror bpf/*.c bpf/*.h

.PHONY: fuzz
fuzz: ## Each fuzz target for FUZZTIME (20s)
	@./deploy/fuzz $(FUZZTIME) $(if $(SUDO),"$(SUDO)")

.PHONY: bench
bench: build ## Speed and memory beside nginx, HAProxy and Envoy (about 20 minutes)
	@./deploy/debian $(NEED_BENCH)
	$(SUDO) env "PATH=$$PATH" $(GO) run ./bench $(BENCHFLAGS)

.PHONY: bench-kube
bench-kube: build $(BIN)/cluster ## An agent in a cluster of 10,000 pods, with a real API server (about 3 minutes)
	$(BIN)/cluster build apiserver
	$(SUDO) env "PATH=$$PATH" $(GO) run ./bench/apiserver $(BENCHFLAGS)

.PHONY: demo
demo: build ## Weir over a small shop in network namespaces (DEMOFLAGS=--keep to play)
	@./deploy/debian $(NEED_DEMO)
	$(SUDO) ./$(BIN)/weir demo $(DEMOFLAGS)

.PHONY: image
image: ## Container image FROM scratch as an archive in dist/, made without Docker (ARCH=amd64)
	mkdir -p dist
	CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o dist/weir-$(ARCH) ./cmd/weir
	$(GO) run ./deploy/image -binary dist/weir-$(ARCH) -arch $(ARCH) -version $(VERSION) -tag weirnet/weir:$(VERSION) -o dist/weir-$(ARCH).tar

CLUSTER = $(SUDO) $(BIN)/cluster

.PHONY: $(BIN)/cluster
$(BIN)/cluster:
	CGO_ENABLED=0 $(GO) build -o $@ ./test/cluster/cmd

.PHONY: cluster
cluster: $(BIN)/cluster ## A real Kubernetes cluster in namespaces (CLUSTERFLAGS="--nodes 2 --cni bridge --dual-stack")
	@./deploy/debian $(NEED_CLUSTER)
	$(BIN)/cluster build
	$(CLUSTER) up $(CLUSTERFLAGS)

.PHONY: cluster-down
cluster-down: $(BIN)/cluster ## End that cluster and remove all of it
	$(CLUSTER) down

E2E_IMAGE = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(1)' -o dist/weir-$(1) ./cmd/weir && \
	$(GO) run ./deploy/image -binary dist/weir-$(1) -version $(1) -tag weirnet/weir:$(1) -o dist/weir-$(1).tar

# The same with another layout of every table: what names the layouts is fed one
# word more.
OTHER_LAYOUT := dist/other-layout
E2E_OTHER = sed 's/h := sha256.New()/&\n\th.Write([]byte("other"))/' bpf/pins.go > $(OTHER_LAYOUT).txt && \
	! cmp -s bpf/pins.go $(OTHER_LAYOUT).txt && \
	echo '{"Replace": {"$(CURDIR)/bpf/pins.go": "$(CURDIR)/$(OTHER_LAYOUT).txt"}}' > $(OTHER_LAYOUT).json && \
	CGO_ENABLED=0 $(GO) build -trimpath -overlay $(OTHER_LAYOUT).json -ldflags '-s -w -X main.version=other' -o dist/weir-other ./cmd/weir && \
	$(GO) run ./deploy/image -binary dist/weir-other -version other -tag weirnet/weir:other -o dist/weir-other.tar

# What a build of this tree does in a cluster, with others to update to.
E2E = WEIR_TEST_E2E=1 WEIR_E2E_CNI=$(E2E_CNI) WEIR_E2E_NODES=$(E2E_NODES) WEIR_E2E_DUAL_STACK=$(E2E_DUAL_STACK) \
	WEIR_E2E_IMAGE=$(CURDIR)/dist/weir-dev.tar WEIR_E2E_NEXT=$(CURDIR)/dist/weir-$(1).tar WEIR_E2E_OTHER=$(CURDIR)/dist/weir-$(2).tar \
	$(GO) test $(EXEC) -count=1 -v -timeout 40m $(E2EFLAGS)

.PHONY: e2e
e2e: $(BIN)/cluster ## Deploys the image to a cluster of its own and plays stories (E2E_CNI=bridge E2E_NODES=2 E2E_DUAL_STACK=1 E2EFLAGS="-run ...")
	@./deploy/debian $(NEED_CLUSTER)
	$(BIN)/cluster build
	mkdir -p dist
	$(call E2E_IMAGE,dev)
	$(call E2E_IMAGE,next)
	$(E2E_OTHER)
	$(call E2E,next,other) ./test/e2e

# Those of its stories that are a minute of every change.
E2E_SHORT := install tenants_by_NetworkPolicy tenants_by_CiliumNetworkPolicy uninstall
empty :=

.PHONY: e2e-short
e2e-short: $(BIN)/cluster ## The first of them only: deploys, keeps tenants apart in both formats, removes all
	@./deploy/debian $(NEED_CLUSTER)
	$(BIN)/cluster build
	mkdir -p dist
	$(call E2E_IMAGE,dev)
	$(call E2E,dev,dev) -run '^TestDeployed$$/^($(subst $(empty) $(empty),|,$(E2E_SHORT)))$$' ./test/e2e

.PHONY: conformance
conformance: $(BIN)/cluster ## Kubernetes' own NetworkPolicy tests against that cluster (CONFORMANCEFLAGS="--focus ...")
	$(BIN)/cluster build conformance
	$(CLUSTER) conformance $(CONFORMANCEFLAGS)

.PHONY: check
check: ## What CI runs: generated files current, lint, build, test, a cluster, fuzz smoke
	./.ci/run

.PHONY: clean
clean: ## Remove what was built
	rm -rf $(BIN) dist
