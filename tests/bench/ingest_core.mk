# CPU of decoding and encoding: make -C tests/bench -f ingest_core.mk
CC        ?= cc
PG_CONFIG ?= pg_config
INGEST    := ../../ingest
SOURCES   := $(addprefix $(INGEST)/,config.c decode.c decode_json.c json.c transform.c batch.c metrics.c util.c)
FLAGS     := -std=gnu11 -O2 -g -Wall -Wextra -Wshadow -Werror -D_GNU_SOURCE -I$(INGEST) -I$(shell $(PG_CONFIG) --includedir)

bin/ingest_core: ingest_core.c $(SOURCES) $(INGEST)/ingest.h ingest_core.mk
	@mkdir -p bin
	$(CC) $(FLAGS) -Wl,--wrap=transform_row -o $@ ingest_core.c $(SOURCES) -linih -lyajl -lmicrohttpd -lm -pthread
