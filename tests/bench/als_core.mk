# The solver's speed without a server: make -C tests/bench -f als_core.mk 
CC    ?= cc
CORE  := ../../extension/core
FLAGS := -std=gnu11 -O3 -fno-math-errno -g -Wall -Wextra -Wshadow -Werror -I$(CORE)

bin/als_core: als_core.c $(wildcard $(CORE)/*.c $(CORE)/*.h) als_core.mk
	@mkdir -p bin
	$(CC) $(FLAGS) -o $@ als_core.c $(CORE)/pool.c $(CORE)/als.c -lpthread -lm -ldl
