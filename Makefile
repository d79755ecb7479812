# `make quickstart` and `make test` are all a new user needs; README says what the others are for.
PULUMI_VERSION := 3.259.0
STACK ?= lima-ci
# The driver to prepare for: that of the stack's preset, unless it is said.
DRIVER ?= nspawn
limastacks := lima lima-ci star-trek
# No C compiler is needed.
export CGO_ENABLED := 0
# What is built here comes first.
export PATH := $(CURDIR)/bin:$(PATH)

.PHONY: tools quickstart lima test e2e e2e-full soak bench lint destroy schema

tools:
	@go run ./hack/prepare -pulumi $(PULUMI_VERSION) -driver $(DRIVER)

quickstart:
	@go run ./hack/prepare -pulumi $(PULUMI_VERSION) -image debian-12
	@bin/bed up -s quickstart
	@bin/bed run lammps -s quickstart -n 5
	@bin/bed report -s quickstart -o report.html

# The same on virtual machines.
lima:
	@go run ./hack/prepare -pulumi $(PULUMI_VERSION) -driver lima -image ubuntu-22.04
	@bin/bed up -s lima
	@bin/bed run selftest -s lima

test: tools
	go test -timeout 20m $$(go list ./... | grep -v /e2e)
	go test -timeout 20m -tags clouds ./stacks/... ./provision/clouds ./cmd/pulumi-resource-bedfellow
	go test -timeout 30m -v ./e2e

e2e:
	@$(MAKE) --no-print-directory tools DRIVER=$(if $(filter $(limastacks),$(STACK)),lima,$(DRIVER))
	$(if $(filter $(limastacks),$(STACK)),bin/bed bundle)
	go test -timeout 70m -v ./e2e -args -stack $(STACK)

# Also what CI's time does not hold.
e2e-full:
	@$(MAKE) --no-print-directory tools DRIVER=$(if $(filter $(limastacks),$(STACK)),lima,$(DRIVER))
	$(if $(filter $(limastacks),$(STACK)),bin/bed bundle)
	go test -timeout 600m -v ./e2e -args -stack $(STACK) -full
	BEDFELLOW_LIMA_IMAGE=$$(bin/bed image build debian-13 --format vm | cut -d' ' -f3) go test -timeout 180m -v ./provision/lima -run Real

# Fifty kills at random moments; KILLS and SEED replay a run. SOAK=lima-ci KILLS=20 does it to virtual machines, SOAK=ovirt to a fake engine's.
SOAK ?= quickstart
KILLS ?= 50
SEED ?= 0
soak: tools
	$(if $(filter-out quickstart,$(SOAK)),@$(MAKE) --no-print-directory tools DRIVER=$(if $(filter $(limastacks),$(SOAK)),lima,$(SOAK)))
	go test -count=1 -timeout 120m -v ./e2e -run TestKills -args -stack $(SOAK) -kills $(KILLS) -seed $(SEED)

# Prints JSON; docs/performance.md tells how to read it, and what SIZES may be.
RUNS ?= 3
bench: tools
	@go run ./hack/bench -n $(RUNS) $(SIZES)

lint:
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	go vet ./...
	go vet -tags clouds ./...
	cd playbooks && ansible-lint --offline --profile production

# Writes the provider's schema; a test says when it is stale.
schema: tools
	bin/pulumi package get-schema ./bin/pulumi-resource-bedfellow > cmd/pulumi-resource-bedfellow/schema.json

destroy:
	@bin/bed destroy -s quickstart
