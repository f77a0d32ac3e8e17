# Unit tests of extension/core.  make -C tests/unit -f core.mk check | check-sanitize
CC     ?= cc
CORE   := ../../extension/core
CORE_C := $(CORE)/pool.c $(CORE)/sparse.c $(CORE)/als.c $(CORE)/index.c $(CORE)/topk.c $(CORE)/own.c $(CORE)/kmeans.c $(CORE)/block.c
CORE_H := $(CORE)/core.h $(CORE)/kernel.h $(CORE)/kmeans_kernel.h $(CORE)/vector.h $(CORE)/scratch.h ../data/als_golden.h
FLAGS  := -std=gnu11 -O2 -fno-math-errno -g -Wall -Wextra -Wshadow -Werror -I$(CORE) -I../data
LIBS   := -Wl,--wrap=madvise,--wrap=sysconf -lcmocka -lpthread -lm -ldl

.PHONY: check check-sanitize clean
check: bin/core_test
	./bin/core_test

# Threads under one sanitizer, memory and undefined behaviour under the other.
check-sanitize: bin/core_test_asan bin/core_test_tsan
	ASAN_OPTIONS=detect_leaks=1 ./bin/core_test_asan
	TSAN_OPTIONS=halt_on_error=1 ./bin/core_test_tsan

bin/core_test: core_test.c $(CORE_C) $(CORE_H) core.mk
	@mkdir -p bin
	$(CC) $(FLAGS) -o $@ core_test.c $(CORE_C) $(LIBS)
bin/core_test_asan: core_test.c $(CORE_C) $(CORE_H) core.mk
	@mkdir -p bin
	$(CC) $(FLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all -o $@ core_test.c $(CORE_C) $(LIBS)
bin/core_test_tsan: core_test.c $(CORE_C) $(CORE_H) core.mk
	@mkdir -p bin
	$(CC) $(FLAGS) -fsanitize=thread -o $@ core_test.c $(CORE_C) $(LIBS)
clean:
	rm -f bin/core_test bin/core_test_asan bin/core_test_tsan
