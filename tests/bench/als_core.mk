# The core's speed without a server: make -C tests/bench -f als_core.mk
CC    ?= cc
CORE  := ../../extension/core
FLAGS := -std=gnu11 -O3 -fno-math-errno -g -Wall -Wextra -Wshadow -Werror -I$(CORE)

all: bin/als_core bin/topk_core bin/kmeans_core

bin/als_core: als_core.c synthetic.h $(wildcard $(CORE)/*.c $(CORE)/*.h) als_core.mk
	@mkdir -p bin
	$(CC) $(FLAGS) -o $@ als_core.c $(CORE)/pool.c $(CORE)/als.c -lpthread -lm -ldl
bin/topk_core: topk_core.c synthetic.h $(wildcard $(CORE)/*.c $(CORE)/*.h) als_core.mk
	@mkdir -p bin
	$(CC) $(FLAGS) -o $@ topk_core.c $(CORE)/pool.c $(CORE)/als.c $(CORE)/index.c -lpthread -lm
bin/kmeans_core: kmeans_core.c $(wildcard $(CORE)/*.c $(CORE)/*.h) als_core.mk
	@mkdir -p bin
	$(CC) $(FLAGS) -o $@ kmeans_core.c $(CORE)/pool.c $(CORE)/kmeans.c -lpthread -lm
