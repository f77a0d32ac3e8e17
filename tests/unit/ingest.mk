# The ingester without a server: `make -C tests/unit -f ingest.mk check`.  SANITIZE=1 adds ASan and UBSan.
INGEST  = ../../ingest
PG_CONFIG ?= pg_config
SOURCES = $(addprefix $(INGEST)/,config.c decode.c decode_json.c json.c transform.c partition.c store.c sink.c batch.c metrics.c util.c)
FLAGS   = -std=gnu11 -O1 -g -Wall -Wextra -Wshadow -Werror -D_GNU_SOURCE -I$(INGEST) -I$(shell $(PG_CONFIG) --includedir) \
          $(if $(SANITIZE),-fsanitize=address$(comma)undefined -fno-sanitize-recover=all)
comma   = ,
check: bin/ingest_test
	bin/ingest_test
bin/ingest_test: ingest_test.c $(SOURCES) $(INGEST)/ingest.h ingest.mk
	mkdir -p bin
	$(CC) $(FLAGS) -o $@ ingest_test.c $(SOURCES) -lcmocka -L$(shell $(PG_CONFIG) --libdir) -lpq -linih -lyajl -lmicrohttpd -lm -pthread
clean:
	rm -f bin/ingest_test
.PHONY: check clean
