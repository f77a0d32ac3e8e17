# The client of the cases of serving: make -C tests/bench -f client.mk
CC        ?= cc
PG_CONFIG ?= pg_config
FLAGS     := -std=gnu11 -O3 -g -Wall -Wextra -Wshadow -Werror

bin/client: client.c client.mk
	@mkdir -p bin
	$(CC) $(FLAGS) -I$(shell $(PG_CONFIG) --includedir) -o $@ client.c -L$(shell $(PG_CONFIG) --libdir) -lpq
