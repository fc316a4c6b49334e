# The few commands that a person needs; `make` alone lists them. Everything works from a fresh clone on Debian or Ubuntu.

# Kept where cargo would put it, but named, because the programs built there are started from here.
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
# A failed test says why; the way through the test's own futures would only hide that.
export RUST_LIB_BACKTRACE ?= 0
# Tests wait for services more than they compute, so there are more of them at once than the two cores that they are made for.
export RUST_TEST_THREADS ?= 3

DEV := $(CARGO_TARGET_DIR)/release/orderflow-dev
# Tests stop and kill the services at named points, which exist only in builds with this feature.
FAILPOINTS := --features orderflow-producer/failpoints,orderflow-consumer/failpoints,orderflow-operator/failpoints
RELEASE := cargo build --release --locked --bins -p orderflow-dev -p orderflow-producer -p orderflow-consumer -p orderflow-provision

DOCKER ?= docker
IMAGES := producer consumer provision operator
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# `exec`, so that Ctrl-C reaches orderflow-dev once, from the terminal, and its exit code is the one that make sees.
.PHONY: up
up: ## Build and run everything on this machine; Ctrl-C stops it, data stays
	@scripts/prepare
	@$(RELEASE)
	@exec $(DEV) up

.PHONY: down
down: $(DEV) ## Stop what `make up` started and remove its data
	@exec $(DEV) down

.PHONY: status
status: $(DEV) ## Show what runs and where
	@exec $(DEV) status

.PHONY: load
load: $(DEV) ## Send orders to the running stack [RATE=per second] [CONNECTIONS=n] [DURATION=seconds]
	@exec $(DEV) load $(if $(RATE),--rate $(RATE)) $(if $(CONNECTIONS),--connections $(CONNECTIONS)) $(if $(DURATION),--duration $(DURATION))

.PHONY: test
test: ## Run all tests against real Postgres, Kafka, S3 and Kubernetes [TEST=part of a name]
	@scripts/prepare build services browser kubernetes helm s3 go contract
	cargo build --locked --workspace --bins $(FAILPOINTS)
	cargo test --locked --workspace $(FAILPOINTS) $(TEST)

.PHONY: proof
proof: ## Kill, freeze and cut off everything while orders flow, and check every order [SEED=n] [MINUTES=n] [RATE=per second]
	@scripts/prepare build services s3
	cargo build --locked --workspace --bins $(FAILPOINTS)
	@exec $(CARGO_TARGET_DIR)/debug/orderflow-proof $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RATE),--rate $(RATE)) $(if $(STORE),--store $(STORE))

.PHONY: bench
bench: ## Measure each part beside its yardstick; all of them go to docs/benchmarks/report.md [ROUNDS=n] [SECONDS=n] [ONLY=part,part]
	@scripts/prepare build services s3 kubernetes
	$(RELEASE) -p orderflow-bench
	cargo build --release --locked -p orderflow-operator
	@exec $(CARGO_TARGET_DIR)/release/orderflow-bench $(if $(ONLY),--only $(ONLY),--report docs/benchmarks/report.md) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS))

.PHONY: instructions
instructions: ## Count the instructions of parsing and encoding, with valgrind
	@scripts/instructions

.PHONY: screenshots
screenshots: ## Take the pictures in docs/images anew, of the pipeline under load
	@scripts/prepare build services browser
	cargo build --locked --workspace --bins $(FAILPOINTS)
	cargo test --locked --workspace $(FAILPOINTS) --test browser screenshots -- --ignored

.PHONY: e2e
e2e: ## Install all of it on a real cluster and disturb it: on kind, or as root on a node without Docker
	@scripts/e2e

.PHONY: build
build: ## Build the programs in release mode
	@scripts/prepare build
	$(RELEASE)
	cargo build --release --locked -p orderflow-operator

.PHONY: docs
docs: ## Build the book of docs/ as HTML in target/book
	@scripts/prepare docs
	@scripts/docs

.PHONY: lint
lint: ## Check formatting, run clippy and check the dependencies; warnings are errors
	@scripts/prepare build deny
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets $(FAILPOINTS) -- -D warnings
	@scripts/deny

.PHONY: fmt
fmt: ## Format the code
	cargo fmt --all

.PHONY: prepare
prepare: ## Install what building and testing need (Debian, Ubuntu)
	@scripts/prepare

.PHONY: images
images: ## Build a container image of each program (needs Docker); they are compiled in a container
	@command -v $(DOCKER) >/dev/null || { echo "make images: $(DOCKER) is not on PATH. Install Docker, or say what to use instead: make images DOCKER=podman" >&2; exit 1; }
	@$(DOCKER) info >/dev/null 2>&1 || { echo "make images: $(DOCKER) is installed, but does not reach its engine (try: $(DOCKER) info)" >&2; exit 1; }
	$(DOCKER) build --file Dockerfile.build --output type=local,dest=target/images .
	@for image in $(IMAGES); do \
		$(DOCKER) build --file Dockerfile --target $$image --build-arg VERSION=$(VERSION) --tag orderflow-$$image:$(VERSION) target/images || exit; \
	done

# Only when missing: `down`, `status` and `load` must work at once on a stack that runs, whatever the sources look like.
$(DEV):
	@scripts/prepare build
	$(RELEASE)
