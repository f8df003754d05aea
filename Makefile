# make          build everything, release, into build/
# make demo     a prompt becomes a video, on this machine, without a GPU
# make test     all tests (what .ci/run calls)
# make sanitize the same tests under ASan+UBSan, then the threaded ones under TSan
# make semantic what the shapes models get right, as a table (some ten minutes)
# make soak     a million simulated and ten thousand real operations, with kills (half an hour)
# make load     what a daemon on TLS bears, measured (half an hour, a quiet machine)
# make fuzz     every fuzz target for FUZZ_SECONDS (needs clang)
# make docker-test  the steps of docker/Dockerfile, as root in debootstrap roots (some minutes)
# make bench | fmt | lint | clean
#
# A bare Debian 12 with git and make is enough: `deps` installs what is missing.

DEPS = cmake ninja-build gcc g++ libc6-dev pkg-config python3 ca-certificates \
       libopenblas-pthread-dev libprotobuf-c-dev protobuf-c-compiler libnng-dev libssl-dev \
       libavcodec-dev libavformat-dev libavutil-dev libswscale-dev ffmpeg zlib1g-dev \
       libsentencepiece-dev libutf8proc-dev libcyaml-dev libyaml-dev libcjson-dev libcmocka-dev \
       libsqlite3-dev libmicrohttpd-dev python3-venv python3-numpy protobuf-compiler openssl
LINT_DEPS = clang-tidy clang-format
FUZZ_TARGETS = safetensors pth pickle image clean tokenizer envelope budget sp front
FUZZ_SECONDS ?= 600

JOBS ?= $(shell nproc)
PROMPT ?= a red circle moves from left to right

.PHONY: all deps demo test semantic sanitize dev tsan soak load fuzz docker-test bench fmt lint clean

all: build/build.ninja
	cmake --build build -j $(JOBS)

build/build.ninja: | deps
	cmake --preset release

deps:
	@missing=""; for p in $(DEPS); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$p"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "installing:$$missing"; \
	  if [ "$$(id -u)" != 0 ]; then echo "not root: run  sudo make deps"; exit 1; fi; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >build-deps.log 2>&1 \
	    || { cat build-deps.log; exit 1; }; rm -f build-deps.log; \
	fi

demo: all
	@PROMPT="$(PROMPT)" bash tests/demo.sh build

test: all
	@python3 tests/run_tests.py build

semantic: all
	@$$(cat build/python-with-numpy) -B tests/models/table.py build

dev: deps
	cmake --preset dev >/dev/null
	cmake --build build-dev -j $(JOBS)

tsan: deps
	cmake --preset tsan >/dev/null
	cmake --build build-tsan -j $(JOBS)

sanitize: dev tsan
	@python3 tests/run_tests.py build-dev; a=$$?; python3 tests/run_tests.py build-tsan -L threads; b=$$?; exit $$((a | b))

SOAK_SEED ?= $(shell date +%s)

soak: all
	build/core_sim_test soak 1000000
	SLUICE_SEED=$(SOAK_SEED) SLUICE_OPS=10000 SLUICE_WORKER_KILLS=100 SLUICE_DAEMON_KILLS=50 \
	  python3 -B tests/e2e/test_random.py build

load: all
	@python3 -B tests/e2e/measure_front.py build

fuzz: all
	@for t in $(FUZZ_TARGETS); do \
	  mkdir -p build/fuzz/$$t; echo "fuzz $$t, $(FUZZ_SECONDS) s"; \
	  build/fuzz_$$t -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	    -artifact_prefix=build/fuzz/$$t- build/fuzz/$$t tests/fuzz/corpus/$$t >build/fuzz/$$t.log 2>&1 \
	    || { tail -40 build/fuzz/$$t.log; exit 1; }; \
	  grep number_of_executed build/fuzz/$$t.log; \
	done

docker-test:
	@mkdir -p build
	@python3 -B tests/docker_test.py build

bench: all
	build/bench kernels

fmt:
	git ls-files '*.c' '*.h' '*.cc' | xargs clang-format -i

lint: dev
	@for p in $(LINT_DEPS); do command -v $$p >/dev/null || { echo "needs $$p (apt-get install $$p)"; exit 1; }; done
	git ls-files '*.c' | xargs -P $(JOBS) -n 4 clang-tidy -p build-dev --quiet --warnings-as-errors='*'

clean:
	rm -rf build build-dev build-tsan
