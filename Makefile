# Names for commands; what they do is in the programs.
E2E = target/debug/e2e

.PHONY: help demo demo-down test unit lint cli images programs bench crds clean-lab protocol-table faults simulate fuzz interop

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: ## show it: three nodes, pods that move, prefixes that stay
	@sh e2e/setup.sh
	@cargo build -q --locked -p aero-e2e
	@$(E2E) demo

demo-down: ## take the demo's cluster away
	@cargo build -q --locked -p aero-e2e
	@$(E2E) lab --name demo down

test: ## every test, the end-to-end tests included
	@e2e/test.sh

unit: ## tests that need no cluster
	cargo test --workspace --exclude aero-e2e

interop: ## the protocol on real kernels: stock DHCPv6 clients, Kea, tshark (root)
	@sh e2e/setup.sh
	cargo build --locked -p aero-node-agent
	cargo test --locked -p aero-e2e --test interop -- --test-threads 6

lint: ## formatting and clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

cli: ## kubectl-aero, for your PATH
	cargo build -q --release --locked -p aero-cli
	@echo target/release/kubectl-aero

images: ## container images, as OCI archives in target/images
	@cargo build -q --locked -p aero-e2e
	@$(E2E) images

programs: ## build the lab's Kubernetes (about ten minutes once, then cached)
	@cargo build -q --locked -p aero-e2e
	@$(E2E) programs

NODES ?= 8
SERVERS ?= 3
CLIENTS ?= 20
SEEDS ?= 2000
simulate: ## simulate links with faults: NODES= SERVERS= CLIENTS= SEEDS= (OPTIONS= for aero-simulate)
	@cargo build -q --locked -p aero-simulation
	@target/debug/aero-simulate --nodes $(NODES) --servers $(SERVERS) --clients $(CLIENTS) --seeds $(SEEDS) $(OPTIONS)

SECONDS ?= 20
fuzz: ## attack parsers and engines for SECONDS=
	@cargo build -q --locked -p aero-fuzz
	@target/debug/aero-fuzz --seconds $(SECONDS)
faults: ## run the tests and say which fault cases they show (LAB=no: without the lab)
	@e2e/faults.sh

protocol-table: ## run the tests and say which elements of the protocol they show
	@e2e/protocol-table.sh

bench: ## measure the forwarders against plain routing, VXLAN and wireguard-go (about eight minutes)
	@sh e2e/setup.sh bench
	nice -n -10 cargo bench -q --locked -p aero-dataplane --bench forwarders -- --table $(CURDIR)/docs/results/bench.md

bench-relays: ## measure interior BGP: failures, and a million prefixes of 100 peers (PEERS= ROUTES= CHURN=)
	@sh e2e/setup.sh
	@e2e/bench-relays.sh

crds: ## write the CRDs from the code
	cargo run -q -p aero-crds --bin crdgen

clean-lab: ## take away whatever labs have left
	@cargo build -q --locked -p aero-e2e
	@for name in demo test test4 test6 killed; do $(E2E) lab --name $$name down; done
