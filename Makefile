# Every target sets up what it needs: an environment of $(PYTHON) in $(VENV), the packages of
# pyproject's groups, and the release build of the extension. What is up to date is left alone.

PYTHON ?= python3
VENV ?= $(if $(filter test-freethreaded,$(MAKECMDGOALS)),.venv-ft,.venv)

bin := $(VENV)/bin
stamps := $(VENV)/stamps
# Some peers are not there for the newest interpreters: PEERS= tests without them.
PEERS ?= $(stamps)/group-peers
# In so many threads at once each test runs for `make test-parallel`.
THREADS ?= 4
# Which OpenSSL does DTLS use? The system's, if it is recent enough; otherwise one that is compiled
# first, which takes minutes. TOMADA_DTLS=no builds without DTLS. scripts/build_backend.py decides
# the same for pip.
dtls := $(if $(filter no,$(TOMADA_DTLS)),none,$(if $(shell pkg-config --atleast-version=3.0 openssl \
	2>/dev/null && echo yes),system,vendored))
# The features of everything, and of the engine alone.
all_features := $(if $(filter none,$(dtls)),--no-default-features --features python,$(if $(filter \
	vendored,$(dtls)),--features vendored))
dtls_features := $(if $(filter system,$(dtls)),--features dtls,$(if $(filter vendored,$(dtls)),--features \
	vendored))
engine_features := --no-default-features $(dtls_features)
fuzz_features := $(if $(filter vendored,$(dtls)),--features vendored)
sources := $(shell find src -name '*.rs') Cargo.toml Cargo.lock pyproject.toml README.md

# The load of the benchmarks is a program of its own, with its own dependencies.
loadgen := benches/loadgen/target/release/loadgen

# An environment of another interpreter is no use. A dry run removes nothing.
id := $(shell $(PYTHON) scripts/toolchain.py id 2>/dev/null)
ifneq ($(id),$(shell cat $(stamps)/id 2>/dev/null))
ifeq (,$(if $(id),,none)$(findstring n,$(firstword -$(MAKEFLAGS))))
$(shell rm -rf $(VENV))
endif
endif

.DELETE_ON_ERROR:
.PHONY: help demo test test-tools test-all test-repeat test-parallel test-freethreaded test-peers \
	test-without-dtls test-wheel \
	interop quic fuzz fuzz-targets families soak valgrind sanitize lint bench bench-quick \
	bench-programs bench-compare bench-import loom docs wheels reproducible audit clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1:\2/p' Makefile | column -t -s :

demo: $(stamps)/build ## a server and its clients on port 1234, tomada and plain sockets
	@$(bin)/python -m tomada demo

test: $(stamps)/build $(stamps)/group-test $(PEERS) $(loadgen) ## the Rust unit tests and the Python suite
	cargo test --quiet $(engine_features)
	cargo test --quiet --manifest-path benches/loadgen/Cargo.toml $(dtls_features)
	cargo test --quiet --manifest-path fuzz/Cargo.toml $(fuzz_features)
	$(bin)/python -m pytest $(PYTEST_ARGS)

test-tools: ## install the programs that the tests use, where there is apt-get
	@$(PYTHON) tests/helpers/tools.py

test-all: ## the suite on every CPython from 3.11 up that is installed
	@$(PYTHON) scripts/toolchain.py list | while read -r tag python; do \
		echo "== $$python"; \
		$(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$$tag </dev/null || exit 1; \
	done

REPEAT ?= 10

# A busy core finds what fails once in fifty. Each environment is built once.
test-repeat: ## the suite ten times on every CPython from 3.11 up, beside a busy core; REPEAT=n
	@mkdir -p target; status=0; $(PYTHON) scripts/toolchain.py list >target/interpreters; \
	while read -r tag python; do \
		echo "== $$python"; \
		$(MAKE) --no-print-directory VENV=.venv-$$tag PYTHON=$$python test-once </dev/null || status=1; \
	done <target/interpreters; exit $$status

test-once: $(stamps)/build $(stamps)/group-test $(PEERS) $(loadgen)
	@$(PYTHON) scripts/repeat.py $(REPEAT) $(bin)/python -m pytest -q $(PYTEST_ARGS)

test-parallel: $(stamps)/build $(stamps)/group-test $(stamps)/group-parallel ## each test in several threads at once, as far as tests can
	$(bin)/python -m pytest --parallel-threads=$(THREADS) --skip-thread-unsafe=1 -r fEX $(PYTEST_ARGS)

test-freethreaded: ## the suite without the global lock, then in parallel; PYTHON=python3.14t or its path
	@$(PYTHON) scripts/toolchain.py check-freethreaded
	@$(MAKE) --no-print-directory test test-parallel VENV=$(VENV) PEERS= </dev/null

test-peers: ## the tests of libraries that use datagram endpoints, on the standard loop and tomada's
	@$(MAKE) --no-print-directory VENV=.venv-peers \
		.venv-peers/stamps/build .venv-peers/stamps/group-suites
	@.venv-peers/bin/python tests/peers/run.py .venv-peers/peers

interop: $(stamps)/build $(stamps)/group-test $(PEERS) ## DTLS with other programs, which docs/reference/dtls-interop.md lists
	TOMADA_WRITE_INTEROP=1 $(bin)/python -m pytest tests/dtls -k interop

# Its wheel is in an environment of its own, so that the extension of the other targets stays.
test-without-dtls: ## the suite of a build without DTLS, as TOMADA_DTLS=no makes it
	@$(MAKE) --no-print-directory TOMADA_DTLS=no VENV=.venv-without-dtls test-wheel

test-wheel: $(stamps)/installed $(stamps)/group-test $(PEERS)
	cargo test --quiet $(engine_features)
	$(bin)/python -m pytest $(PYTEST_ARGS)

quic: $(stamps)/build $(stamps)/group-examples ## a file over QUIC, timed on the standard loop, uvloop and tomada's
	@$(bin)/python examples/quic_transfer.py

# What cargo-fuzz builds with, but for the sanitizers, which only nightly toolchains have.
fuzz_flags := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
	-Cdebug-assertions -Coverflow-checks
fuzz_host := $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_RUNS ?= 10000000

fuzz: fuzz-targets families ## both of the following

# They need a C++ compiler.
fuzz-targets: ## ten million executions of each fuzz target; FUZZ_RUNS=n for others
	@cd fuzz && RUSTFLAGS="$(fuzz_flags)" \
		cargo build --quiet --release --features libfuzzer $(fuzz_features) --target $(fuzz_host)
	@cd fuzz && for corpus in corpus/*; do \
		target=$${corpus#corpus/}; echo "== $$target"; \
		mkdir -p target/corpus/$$target target/findings; \
		target/$(fuzz_host)/release/$$target -runs=$(FUZZ_RUNS) -max_len=1024 -verbosity=0 \
			-print_final_stats=1 -artifact_prefix=target/findings/$$target- \
			target/corpus/$$target $$corpus || exit 1; \
	done

# As many examples for each property of the Rust code.
families: export TOMADA_LONG := 1
families: export PROPTEST_CASES := 20000
families: $(stamps)/build $(stamps)/group-test $(PEERS) $(loadgen) ## the long form of all tests that are generated
	cargo test --quiet $(engine_features) --lib
	$(bin)/python -m pytest -m family --timeout 7200 $(PYTEST_ARGS)

SOAK_SECONDS ?= 900
SOAK_DATAGRAMS ?= 500000000
# Where reliability.md is, which gets the figures; SOAK_DIRECTORY= leaves it alone.
SOAK_DIRECTORY ?= docs

soak: $(stamps)/build $(stamps)/group-bench $(loadgen) ## all kinds of traffic at once, every datagram accounted for; SOAK_SECONDS=n
	$(bin)/python -m tests.soak --seconds $(SOAK_SECONDS) --datagrams $(SOAK_DATAGRAMS) \
		$(if $(SOAK_DIRECTORY),--directory $(SOAK_DIRECTORY) --command \
			"make soak SOAK_SECONDS=$(SOAK_SECONDS) SOAK_DATAGRAMS=$(SOAK_DATAGRAMS)$(if $(SOAK_ARGS), SOAK_ARGS='$(SOAK_ARGS)')") $(SOAK_ARGS)

# What memcheck says of our own code is an error; of the interpreter, a suppression of ours.
memcheck := valgrind --quiet --error-exitcode=99 --num-callers=30 --leak-check=full \
	--show-leak-kinds=definite --errors-for-leak-kinds=definite \
	--suppressions=$(CURDIR)/tests/valgrind/python.supp
comma := ,
# In the child of a fork, what the parent's other threads held is lost, and memcheck says so.
memcheck_skip := --skip fork_mutex::mutex::tests::a_child_can_lock \
	--skip descriptor::tests::a_child_gives_up_a_descriptor_that_its_parent_was_closing
# The same as a list of TOML's.
memcheck_runner := ["$(subst $() ,"$(comma)",$(memcheck))"]

valgrind: ## memcheck over the Rust unit tests and a run from Python; takes minutes
	@command -v valgrind >/dev/null || { \
		echo "make valgrind needs valgrind: install the package of that name"; exit 1; }
	PROPTEST_CASES=16 cargo test --quiet $(engine_features) --lib --profile valgrind \
		--config 'target."cfg(all())".runner = $(memcheck_runner)' -- $(memcheck_skip)
	@$(MAKE) --no-print-directory VENV=.venv-valgrind .venv-valgrind/stamps/wheel
	PYTHONMALLOC=malloc $(memcheck) .venv-valgrind/bin/python tests/valgrind/exercise.py

# Sanitizers and Miri come with nightly toolchains. The stable compiler has AddressSanitizer hidden,
# and ThreadSanitizer too where there is the source of its library (rust-src), which must be
# instrumented as well. Miri is nightly's alone.
ifneq (,$(filter sanitize,$(MAKECMDGOALS)))
toolchain := $(shell rustup toolchain list 2>/dev/null | grep -q ^nightly && echo +nightly)
has_source := $(wildcard $(shell rustc $(toolchain) --print sysroot)/lib/rustlib/src/rust/library)
has_miri := $(if $(toolchain),$(shell cargo $(toolchain) miri --version 2>/dev/null))
endif
# A test asks for more memory than there can be.
sanitizer_options := allocator_may_return_null=1
sanitized = RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=$(1)" PROPTEST_CASES=16 cargo $(toolchain) test \
	--quiet $(2) --lib --target $(fuzz_host) --target-dir target/sanitize/$(1)
unavailable = @echo "not run: $(1)"

# Only AddressSanitizer runs the tests of DTLS: ThreadSanitizer needs an OpenSSL that was compiled for
# it, and Miri cannot call C.
sanitize: ## AddressSanitizer, ThreadSanitizer and Miri over the Rust unit tests, as far as installed
	ASAN_OPTIONS=$(sanitizer_options) $(call sanitized,address,$(engine_features))
	$(if $(has_source),TSAN_OPTIONS=$(sanitizer_options) \
		$(call sanitized,thread,--no-default-features) -Zbuild-std,\
		$(call unavailable,ThreadSanitizer (rustup component add rust-src)))
	$(if $(has_miri),MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=4 $(PYTHON) scripts/miri.py \
		cargo $(toolchain) miri test --quiet --no-default-features --lib --target-dir target/sanitize/miri,\
		$(call unavailable,Miri (rustup toolchain install nightly --component miri)))

loom: ## the locks and wake-ups in every order that their threads can take, about half a minute
	RUSTFLAGS="--cfg loom" cargo test --quiet --release --target-dir target/loom --no-default-features \
		--lib loom

lint: $(stamps)/build $(stamps)/group-lint $(stamps)/group-test ## formatting, lints, types, stubs, prose
	cargo fmt --check
	cargo clippy --quiet --all-targets $(all_features) -- -D warnings
	cargo fmt --check --manifest-path benches/loadgen/Cargo.toml
	cargo clippy --quiet --all-targets --manifest-path benches/loadgen/Cargo.toml $(dtls_features) -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --quiet --all-targets --manifest-path fuzz/Cargo.toml $(fuzz_features) -- -D warnings
	$(bin)/ruff check --quiet
	$(bin)/ruff format --quiet --check
	$(bin)/python scripts/prose.py
	$(bin)/python scripts/layers.py
	$(bin)/lint-imports --no-logo --no-cache
	$(bin)/python -m mypy
	$(bin)/python -m mypy.stubtest --ignore-disjoint-bases --ignore-unused-allowlist \
		--allowlist scripts/stubtest-allowlist tomada._core tomada._constants

bench: $(stamps)/build $(stamps)/group-bench $(loadgen) ## the benchmarks, whose tables go to docs/benchmarks
	$(bin)/python -m benches

bench-quick: $(stamps)/build $(stamps)/group-bench $(loadgen) ## the most telling ones, in two minutes
	$(bin)/python -m benches --quick --rounds 3 --seconds 0.2 --directory target/bench-quick \
		--results target/bench-quick/results.json

bench-programs: $(stamps)/build $(stamps)/group-bench-programs ## programs with libraries from PyPI, on each event loop
	$(bin)/python -m benches.applications

bench-compare: $(stamps)/build $(stamps)/group-bench $(loadgen) ## this build beside another one; OLD=its interpreter
	$(bin)/python -m benches --against $(OLD) $(BENCH_ARGS)

bench-import: $(stamps)/build ## how long imports take
	@$(bin)/python benches/imports.py

docs: $(stamps)/group-docs ## the documentation, as a site in site/
	@NO_MKDOCS_2_WARNING=1 $(bin)/python -m mkdocs build --strict
	@echo "site/index.html"

wheels: $(stamps)/group-wheels ## a wheel for every CPython that is installed, tried out, in dist/
	$(bin)/python scripts/wheels.py dist $(WHEELS)

this_python = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# Each copy compiles OpenSSL, which takes minutes.
reproducible: $(stamps)/group-wheels ## build this commit's wheel in two folders, and compare the files
	@rm -rf target/copies
	@for copy in first second; do \
		git clone --quiet . target/copies/$$copy && $(bin)/python target/copies/$$copy/scripts/wheels.py \
			target/copies/$$copy/dist --python $(this_python) $(WHEELS) || exit 1; \
	done
	diff -r target/copies/first/dist target/copies/second/dist
	@cd target/copies/first/dist && sha256sum *

# Of Rust, all crates of the lock file; of Python, the packages that the extras install.
audit: $(stamps)/group-audit ## known vulnerabilities, licences and sources of dependencies; workflows
	@command -v cargo-deny >/dev/null || { \
		echo "make audit needs cargo-deny: cargo install --locked cargo-deny"; exit 1; }
	cargo deny --locked check
	@$(bin)/python scripts/toolchain.py extras >target/extras.txt
	$(bin)/pip-audit --strict --progress-spinner off --requirement target/extras.txt
	$(bin)/zizmor --offline --quiet .github

clean: ## remove all that was built
	rm -rf .venv* target benches/loadgen/target fuzz/target dist site python/tomada/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

$(stamps)/venv:
	@$(PYTHON) scripts/toolchain.py check
	@$(PYTHON) -m venv --clear $(VENV)
	@$(bin)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@mkdir -p $(stamps) && $(PYTHON) scripts/toolchain.py id >$(stamps)/id && touch $@

$(stamps)/group-%: pyproject.toml | $(stamps)/venv
	@$(bin)/python -m pip install --quiet --group $*
	@touch $@

$(stamps)/build: $(sources) $(stamps)/group-build
	@$(PYTHON) scripts/toolchain.py check
	@echo "building the extension for $$($(bin)/python --version) (a minute or so the first time)"
	@$(if $(filter vendored,$(dtls)),echo "this compiles OpenSSL as well and takes minutes:" \
		"libssl-dev 3.0 and pkg-config would avoid that")
	@VIRTUAL_ENV=$(abspath $(VENV)) $(bin)/maturin develop --release $(all_features) >$(stamps)/log 2>&1 \
		|| { cat $(stamps)/log; exit 1; }
	@touch $@

# Of a wheel the extension has a place of its own, and that of the other targets stays as it is.
$(stamps)/wheel: $(sources) $(shell find python -name '*.py') $(stamps)/group-build
	@echo "building the extension for memcheck"
	@rm -rf target/memcheck
	@$(bin)/maturin build --quiet --profile valgrind --auditwheel skip --strip false $(all_features) --out target/memcheck \
		--interpreter $(bin)/python
	@$(bin)/python -m pip install --quiet --force-reinstall target/memcheck/*.whl
	@touch $@

# As a user installs it from its source.
$(stamps)/installed: $(sources) $(shell find python -name '*.py') $(stamps)/group-build
	@$(PYTHON) scripts/toolchain.py check
	@echo "building a wheel for $$($(bin)/python --version)"
	@PATH="$(abspath $(bin)):$$PATH" TOMADA_DTLS=$(TOMADA_DTLS) $(bin)/python -m pip install --quiet \
		--no-build-isolation --no-deps --force-reinstall .
	@touch $@

$(loadgen): $(wildcard benches/loadgen/src/*.rs benches/loadgen/src/*/*.rs) benches/loadgen/Cargo.toml benches/loadgen/Cargo.lock
	cargo build --quiet --release --locked --manifest-path benches/loadgen/Cargo.toml \
		$(dtls_features)
	@touch $@
