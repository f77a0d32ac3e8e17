# Millrace: the extension (extension/, sql/), the ingester (ingest/) and their tests.  `make help` lists the targets.

PG_CONFIG ?= pg_config
PGVER     ?= 15
# A scenario that hangs is ended, with all that it started.
PROVE      = prove --timer --exec 'timeout -k 20 600 bash'
# Scenarios run so many at a time, the longest first.
JOBS      ?= 2
LONGEST    = $(wildcard $(patsubst %,tests/e2e/%/run.sh,versions upgrade dashboards images kafka-groups schedule spark spark-train demo-recommend clustering))
SCENARIOS  = $(LONGEST) $(filter-out $(LONGEST),$(sort $(wildcard tests/e2e/*/run.sh)))
VERSION   := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" extension/millrace.control)
SUDO      := $(if $(filter 0,$(shell id -u)),,sudo)
export PG_CONFIG

# Debian packages: what the build needs, and what the tests need besides.  A server of its own that PG_CONFIG names needs none.
SERVER_PACKAGES = $(if $(filter /usr/lib/postgresql/%,$(or $(shell $(PG_CONFIG) --bindir 2>/dev/null),/usr/lib/postgresql/)),postgresql-$(PGVER) postgresql-server-dev-$(PGVER))
BUILD_PACKAGES = gcc make pkg-config $(SERVER_PACKAGES) libpq-dev librdkafka-dev \
                 libinih-dev libyajl-dev zlib1g-dev libmicrohttpd-dev libopenblas0-serial python3 xz-utils
TEST_PACKAGES  = postgresql-client-$(PGVER) postgresql-$(PGVER)-pgtap postgresql-$(PGVER)-hll postgresql-$(PGVER)-cron libtap-parser-sourcehandler-pgtap-perl libcmocka-dev kcat curl clang-format git
# A Java or Python that is not Debian's will do.
JAVA_PACKAGES  = $(shell command -v java >/dev/null || echo default-jre-headless) $(shell command -v mvn >/dev/null || echo maven)
VENV_PACKAGES  = $(shell python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv)
BROWSER_PACKAGES = chromium $(shell command -v node >/dev/null || echo nodejs) $(shell command -v npm >/dev/null || echo npm)
# What the images are built with where there is no Docker.
IMAGE_PACKAGES = buildah mmdebstrap python3-yaml iproute2 procps uidmap

.PHONY: all help deps deps-check install demo demo-stop demo-shop demo-shop-stop demo-recommend demo-recommend-clean dashboards dashboards-stop check check-fast check-faults check-sanitizers check-soak check-parts check-unit check-sql check-isolation check-e2e bench lint format dist clean

all: deps
	$(MAKE) -C extension
	$(MAKE) -C ingest

help:
	@printf '%s\n' \
	  'make            build the extension and the ingester (installs missing packages first)' \
	  'make install    install both' \
	  'make demo       the main job on real data, in a private cluster;  make demo-stop ends it' \
	  'make demo-recommend  recommendations in the stream, from Kafka;  make demo-recommend-clean drops and ends it' \
	  'make demo-shop   a shop from Kafka to dashboards, kept running;  make demo-shop-stop ends it' \
	  'make dashboards  Superset with dashboards of the running demo-shop;  make dashboards-stop ends it' \
	  'make check      all tests;  make check-fast leaves out the Kafka broker, other servers and what takes longest' \
	  'make check-faults  the ingester among long faults (SEEDS="8 11")' \
	  'make check-sanitizers  everything under sanitizers and valgrind (PARTS="core-tsan ingest-asan"; PLANTED=1: each must find a fault)' \
	  'make check-soak  the shop for an hour, with faults, and what grows (SOAK=120 to try)' \
	  'make bench      benchmarks, and the figures of all pages by them (CASES="copy100 als": some)' \
	  'make lint       formatting, versions, metadata;  make format applies the formatting' \
	  'make dist       release archive for PGXN;  make clean ends the demos, too'

# Installs the packages that are missing, and says so; silent when all are there.
install_missing = @missing=; for p in $(1); do \
	  dpkg-query -W -f '$${db:Status-Status}\n' $$p 2>/dev/null | grep -qx installed || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  command -v apt-get >/dev/null || { echo "missing:$$missing (no apt-get here: install their equivalents)" >&2; exit 1; }; \
	  echo "installing with apt:$$missing"; \
	  $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

deps:
	$(call install_missing,$(BUILD_PACKAGES))

deps-check: deps
	$(call install_missing,$(TEST_PACKAGES))

install: all
	$(SUDO) $(MAKE) -C extension install PG_CONFIG=$(PG_CONFIG)
	$(SUDO) $(MAKE) -C ingest install

demo: install
	tests/e2e/retail/demo

demo-stop:
	tests/e2e/retail/demo stop

# WAIT=30: seconds between the two snapshots; NO_DASHBOARDS=1: without Superset.
demo-shop: install
	$(call install_missing,$(JAVA_PACKAGES) $(VENV_PACKAGES) postgresql-$(PGVER)-cron kcat curl)
	docker/shop/demo

demo-shop-stop:
	docker/shop/demo stop

demo-recommend: install
	$(call install_missing,$(JAVA_PACKAGES) $(VENV_PACKAGES) kcat)
	tests/e2e/demo-recommend/demo

demo-recommend-clean:
	tests/e2e/demo-recommend/demo clean

# Superset's Python environment takes a minute the first time.
dashboards:
	$(call install_missing,$(VENV_PACKAGES) curl)
	docker/superset/start

dashboards-stop:
	docker/superset/start stop

# The tests, cheapest first.  Each line can be run alone.
check: deps-check lint install check-parts
	$(call install_missing,$(JAVA_PACKAGES) $(VENV_PACKAGES) $(BROWSER_PACKAGES) $(IMAGE_PACKAGES))
	$(PROVE) -j$(JOBS) $(SCENARIOS)

check-fast: deps-check lint install check-parts
	$(PROVE) -j$(JOBS) $(filter-out $(LONGEST) tests/e2e/shop/%,$(shell grep -L start_kafka tests/e2e/*/run.sh))

# Without and with a server, beside each other; each prints when it has ended.
check-parts: deps-check
	$(MAKE) --no-print-directory -j$(JOBS) -O check-sql check-unit check-isolation

# The kill loop with 200,000 messages for each seed.
SEEDS ?= 8 11
check-faults: deps-check install
	$(call install_missing,$(JAVA_PACKAGES))
	for seed in $(SEEDS); do MILLRACE_LONG=1 MILLRACE_SEED=$$seed $(PROVE) -v tests/e2e/ingest-kill/run.sh tests/e2e/kafka-groups/run.sh || exit 1; done

# Builds and installs nothing outside of build/sanitizers.
SANITIZER_PACKAGES = clang libclang-rt-dev valgrind libc6-dbg
check-sanitizers: deps-check
	$(call install_missing,$(JAVA_PACKAGES) $(SANITIZER_PACKAGES))
	nice tests/sanitizers/run $(if $(PLANTED),--planted) $(PARTS)

# SOAK: seconds; SOAK_RATE: events a second.
check-soak: deps-check install
	$(call install_missing,$(JAVA_PACKAGES) $(VENV_PACKAGES))
	tests/soak/run.sh

check-unit: deps-check
	$(MAKE) -C tests/unit check

check-sql:
	tests/lib/with-cluster pg_prove -d millrace_test --ext .sql tests/sql/

check-isolation:
	tests/isolation/run

check-e2e:
	$(PROVE) -j$(JOBS) $(SCENARIOS)

# CASES="copy100 als": some; then the figures of all pages are written.
bench: deps-check install
	$(call install_missing,$(JAVA_PACKAGES) $(VENV_PACKAGES))
	tests/bench/run $(CASES); status=$$?; tests/bench/report; exit $$status

lint: deps-check
	tests/lib/lint

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

dist:
	mkdir -p build
	git archive --format=zip --prefix=millrace-$(VERSION)/ -o build/millrace-$(VERSION).zip HEAD
	@echo build/millrace-$(VERSION).zip

# What runs is noted in build/, so it is ended before that goes.
clean:
	@! [ -e build/demo-shop ] || docker/shop/demo stop
	@! [ -e build/demo ] || tests/e2e/retail/demo stop
	@! [ -e build/demo-recommend ] || tests/e2e/demo-recommend/demo clean
	$(MAKE) -C extension clean
	$(MAKE) -C ingest clean
	$(MAKE) -C tests/unit clean
	rm -rf build
