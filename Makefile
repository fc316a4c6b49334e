# The commands of this project; `make` alone lists them. Everything works from a fresh clone on Debian or Ubuntu.

# Cargo's own default, but named, because the recipes start programs from this folder.
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
# A failed test prints its reason. A backtrace through the test's futures would hide it.
export RUST_LIB_BACKTRACE ?= 0
# Tests wait for services more than they compute, so more of them run at once than the two cores that they are made for.
export RUST_TEST_THREADS ?= 5

DEV := $(CARGO_TARGET_DIR)/laptop/orderflow-dev
# Tests stop and kill the programs at failpoints, which exist only in builds with this feature.
FAILPOINTS := --features orderflow-producer/failpoints,orderflow-consumer/failpoints,orderflow-operator/failpoints
PROGRAMS := --locked --bins -p orderflow-dev -p orderflow-producer -p orderflow-consumer -p orderflow-provision
RELEASE := cargo build --release $(PROGRAMS)
# A profile that compiles in a third of the time; see Cargo.toml.
LAPTOP := cargo build --profile laptop $(PROGRAMS)

DOCKER ?= docker
IMAGES := producer consumer provision operator
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# `exec`, so that Ctrl-C reaches orderflow-dev once, from the terminal, and make gets its exit code.
.PHONY: up
up: ## Build and run everything on this machine; Ctrl-C stops it and keeps the data [MONITORING=1: with Prometheus]
	@[ -x $(DEV) ] || echo "make up: fetching Postgres, Kafka and S3, and compiling, once: this takes minutes"
	@scripts/prepare build services $(if $(MONITORING),prometheus)
	@$(LAPTOP)
	@exec $(DEV) up

.PHONY: down
down: $(DEV) ## Stop what `make up` started and remove its data
	@exec $(DEV) down

.PHONY: status
status: $(DEV) ## Show the running parts and their addresses
	@exec $(DEV) status

.PHONY: load
load: $(DEV) ## Send orders to the running stack [RATE=per second] [CONNECTIONS=n] [DURATION=seconds]
	@exec $(DEV) load $(if $(RATE),--rate $(RATE)) $(if $(CONNECTIONS),--connections $(CONNECTIONS)) $(if $(DURATION),--duration $(DURATION))

# `--tests`, although only the programs are missing: without it the dependencies would be compiled twice, once without the
# features that tests need of them.
.PHONY: test
test: ## Run all tests against real Postgres, Kafka, S3 and Kubernetes [TEST=part of a name]
	@scripts/prepare build services browser kubernetes helm s3 collector prometheus go contract
	cargo build --locked --workspace --bins --tests $(FAILPOINTS)
	cargo test --locked --workspace $(FAILPOINTS) $(TEST)

.PHONY: proof
proof: ## Inject faults under load, then verify every order [SEED=n] [MINUTES=n] [RATE=per second]
	@scripts/prepare build services s3
	cargo build --locked --workspace --bins $(FAILPOINTS)
	@exec $(CARGO_TARGET_DIR)/debug/orderflow-proof $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RATE),--rate $(RATE)) $(if $(STORE),--store $(STORE))

.PHONY: bench
bench: ## Measure each part against its yardstick; a run of all parts writes docs/benchmarks/report.md [ROUNDS=n] [SECONDS=n] [ONLY=part,part]
	@scripts/prepare build services s3 kubernetes collector
	$(RELEASE) -p orderflow-bench
	cargo build --release --locked -p orderflow-operator
	@exec $(CARGO_TARGET_DIR)/release/orderflow-bench $(if $(ONLY),--only $(ONLY),--report docs/benchmarks/report.md) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS))

.PHONY: instructions
instructions: ## Count the instructions of parsing and encoding, with valgrind
	@scripts/instructions

.PHONY: screenshots
screenshots: ## Take the screenshots in docs/images again, of the pipeline under load
	@scripts/prepare build services browser
	cargo build --locked --workspace --bins $(FAILPOINTS)
	cargo test --locked --workspace $(FAILPOINTS) --test browser screenshots -- --ignored

.PHONY: e2e
e2e: ## Install everything on a real cluster and disturb it: on kind, or as root on a node without Docker
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

.PHONY: check
check: ## Check formatting, run clippy and the unit tests, for every save
	@scripts/prepare build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets $(FAILPOINTS) -- -D warnings
	cargo test --locked --workspace --lib --bins $(FAILPOINTS)

.PHONY: lint
lint: ## Check formatting, run clippy and check the dependencies; warnings are errors
	@scripts/prepare build deny
	cargo fmt --all --check
	@scripts/comments
	cargo clippy --locked --workspace --all-targets $(FAILPOINTS) -- -D warnings
	@scripts/deny

.PHONY: fmt
fmt: ## Format the code
	cargo fmt --all

.PHONY: prepare
prepare: ## Install the requirements of builds and tests (Debian, Ubuntu)
	@scripts/prepare

.PHONY: images
images: ## Compile each program in a container and build its image (needs Docker)
	@command -v $(DOCKER) >/dev/null || { echo "make images: $(DOCKER) is not on PATH. Install Docker, or name another tool: make images DOCKER=podman" >&2; exit 1; }
	@$(DOCKER) info >/dev/null 2>&1 || { echo "make images: $(DOCKER) cannot reach its engine (try: $(DOCKER) info)" >&2; exit 1; }
	$(DOCKER) build --file Dockerfile.build --output type=local,dest=target/images .
	@for image in $(IMAGES); do \
		$(DOCKER) build --file Dockerfile --target $$image --build-arg VERSION=$(VERSION) --tag orderflow-$$image:$(VERSION) target/images || exit; \
	done

# Built only when missing: `down`, `status` and `load` must work at once on a running stack, even if the sources do not
# compile.
$(DEV):
	@scripts/prepare build
	$(LAPTOP)
