/*
 * What every file needs: log, memory, clock, signals, and the parsers of text that belong to no format.
 */
#include "ingest.h"

#include <errno.h>
#include <inttypes.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include <yajl/yajl_gen.h>

/* ---- log ---- */

_Atomic LogLevel log_level = LOG_INFO;
_Atomic LogFormat log_format = LOG_TEXT;
bool log_names_streams;
static _Thread_local const char *log_about;
static atomic_bool progress_is_open; /* the cursor stands behind a progress line */

void
log_stream(const char *stream)
{
	log_about = stream;
}

/* One record is one line of valid UTF-8, whatever a server or library puts into its message. */
static void
clean(char *text)
{
	size_t n_bytes = strlen(text), at;

	while (n_bytes > 0 && strchr("\n\r ", text[n_bytes - 1]))
		text[--n_bytes] = '\0';
	for (char *c = text; *c; c++)
		if (*c == '\n' || *c == '\r')
			*c = ' ';
	while (text_defect(text, n_bytes, &at) != NULL)
		text[at] = '?';
}

static void
print_json(const char *when, const char *level, const char *text)
{
	const char *pairs[][2] = {{"time", when}, {"level", level}, {"stream", log_about}, {"message", text}};
	yajl_gen json = yajl_gen_alloc(NULL);
	const unsigned char *line;
	size_t n_bytes;

	yajl_gen_map_open(json);
	for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
		for (int k = 0; k < 2 && pairs[i][1] != NULL; k++)
			yajl_gen_string(json, (const unsigned char *) pairs[i][k], strlen(pairs[i][k]));
	yajl_gen_map_close(json);
	yajl_gen_get_buf(json, &line, &n_bytes);
	fprintf(stderr, "%.*s\n", (int) n_bytes, (const char *) line);
	yajl_gen_free(json);
}

void
log_line(LogLevel level, const char *format, ...)
{
	static const char *const names[] = {"error", "warning", "info", "debug"};
	char text[4096];
	char seconds[32], when[48];
	struct timespec now;
	struct tm parts;
	va_list args;

	if (level > log_level)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	clean(text);
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &parts);
	strftime(seconds, sizeof seconds, "%Y-%m-%dT%H:%M:%S", &parts);
	snprintf(when, sizeof when, "%s.%03ldZ", seconds, now.tv_nsec / 1000000);
	flockfile(stderr);
	if (progress_is_open)
		fputs("\r\033[K", stderr);
	if (log_format == LOG_JSON)
		print_json(when, names[level], text);
	else if (log_names_streams && log_about != NULL)
		fprintf(stderr, "%s %s [%s] %s\n", when, names[level], log_about, text);
	else
		fprintf(stderr, "%s %s %s\n", when, names[level], text);
	progress_is_open = false;
	funlockfile(stderr);
}

void
log_progress(bool final, const char *format, ...)
{
	bool is_terminal = isatty(STDERR_FILENO);
	char text[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	flockfile(stderr);
	if (!is_terminal)
		fprintf(stderr, "%s\n", text);
	else
		fprintf(stderr, "\r%s\033[K%s", text, final ? "\n" : "");
	fflush(stderr);
	progress_is_open = is_terminal && !final;
	funlockfile(stderr);
}

/* ---- memory ---- */

static void
out_of_memory(size_t n_bytes)
{
	fprintf(stderr, "millrace: out of memory (%zu bytes wanted)\n", n_bytes);
	exit(EXIT_INTERNAL);
}

void *
mem_alloc(size_t n_bytes)
{
	void *memory = calloc(1, n_bytes ? n_bytes : 1);

	if (memory == NULL)
		out_of_memory(n_bytes);
	return memory;
}

void *
mem_grow(void *old, size_t n_items, size_t item_bytes)
{
	void *memory = reallocarray(old, n_items ? n_items : 1, item_bytes);

	if (memory == NULL)
		out_of_memory(n_items);
	return memory;
}

char *
mem_string(const char *text)
{
	char *copy = strdup(text);

	if (copy == NULL)
		out_of_memory(strlen(text));
	return copy;
}

char *
mem_printf(const char *format, ...)
{
	char *text;
	va_list args;

	va_start(args, format);
	if (vasprintf(&text, format, args) < 0)
		out_of_memory(0);
	va_end(args);
	return text;
}

#define CHUNK_BYTES ((size_t) 1 << 20)

typedef struct ArenaChunk
{
	struct ArenaChunk *next;
	size_t n_bytes, used;
	_Alignas(8) char data[];
} ArenaChunk;

static ArenaChunk *
chunk_make(size_t size)
{
	ArenaChunk *chunk = size > SIZE_MAX - sizeof(ArenaChunk) ? NULL : malloc(sizeof(ArenaChunk) + size);

	if (chunk == NULL)
		out_of_memory(size);
	chunk->next = NULL;
	chunk->n_bytes = size;
	chunk->used = 0;
	return chunk;
}

char *
arena_reserve(Arena *arena, size_t n_bytes)
{
	if (n_bytes > CHUNK_BYTES)
	{
		ArenaChunk *chunk = arena->large;

		/* Room that was reserved and not taken is used by the next. */
		if (chunk == NULL || chunk->n_bytes - chunk->used < n_bytes)
		{
			chunk = chunk_make(n_bytes);
			chunk->next = arena->large;
			arena->large = chunk;
		}
		arena->reserved = chunk;
		return chunk->data + chunk->used;
	}
	if (arena->current == NULL || arena->current->n_bytes - arena->current->used < n_bytes)
	{
		ArenaChunk **link = arena->current ? &arena->current->next : &arena->first;

		if (*link == NULL)
			*link = chunk_make(CHUNK_BYTES);
		arena->current = *link;
	}
	arena->reserved = arena->current;
	return arena->current->data + arena->current->used;
}

void
arena_take(Arena *arena, size_t n_bytes)
{
	arena->reserved->used += n_bytes;
	arena->used_bytes += n_bytes;
}

void *
arena_alloc(Arena *arena, size_t n_bytes)
{
	size_t wanted =
		n_bytes + 7; /* callers' sizes are far below SIZE_MAX: they were read into memory before */
	char *room = arena_reserve(arena, wanted);
	size_t skip = (8 - ((uintptr_t) room & 7)) & 7;

	arena_take(arena, skip + n_bytes);
	return room + skip;
}

char *
arena_copy(Arena *arena, const void *data, size_t n_bytes)
{
	char *copy = arena_reserve(arena, n_bytes);

	if (n_bytes > 0)
		memcpy(copy, data, n_bytes);
	arena_take(arena, n_bytes);
	return copy;
}

static void
chunks_free(ArenaChunk *chunk)
{
	while (chunk != NULL)
	{
		ArenaChunk *next = chunk->next;

		free(chunk);
		chunk = next;
	}
}

void
arena_reset(Arena *arena)
{
	for (ArenaChunk *chunk = arena->first; chunk != NULL; chunk = chunk->next)
		chunk->used = 0;
	chunks_free(arena->large);
	arena->large = arena->current = arena->reserved = NULL;
	arena->used_bytes = 0;
}

void
arena_free(Arena *arena)
{
	chunks_free(arena->large);
	chunks_free(arena->first);
	memset(arena, 0, sizeof *arena);
}

char *
buffer_room(Buffer *buffer, size_t n_bytes)
{
	if (n_bytes > SIZE_MAX / 4 || buffer->n_bytes > SIZE_MAX / 4)
		out_of_memory(n_bytes);
	if (buffer->data == NULL || buffer->capacity - buffer->n_bytes < n_bytes)
	{
		size_t capacity = buffer->capacity ? buffer->capacity : 256;

		while (capacity - buffer->n_bytes < n_bytes)
			capacity *= 2;
		buffer->data = mem_grow(buffer->data, capacity, 1);
		buffer->capacity = capacity;
	}
	return buffer->data + buffer->n_bytes;
}

void
buffer_add(Buffer *buffer, const void *data, size_t n_bytes)
{
	char *room = buffer_room(buffer, n_bytes);

	if (n_bytes > 0)
		memcpy(room, data, n_bytes);
	buffer->n_bytes += n_bytes;
}

/* The text is NUL-terminated, the NUL not counted. */
void
buffer_printf(Buffer *buffer, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	int n = vsnprintf(NULL, 0, format, args);
	va_end(args);
	if (n < 0)
		return;
	char *room = buffer_room(buffer, (size_t) n + 1);
	va_start(args, format);
	vsnprintf(room, (size_t) n + 1, format, args);
	va_end(args);
	buffer->n_bytes += (size_t) n;
}

void
buffer_free(Buffer *buffer)
{
	free(buffer->data);
	memset(buffer, 0, sizeof *buffer);
}

/* ---- clock and signals ---- */

static atomic_int n_stop_signals;
static atomic_bool is_stopping, is_drained, wants_reload;
static sem_t main_is_woken;
static _Thread_local bool stops_after_drain;

int64_t
clock_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int64_t
monotonic_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

bool
stop_requested(void)
{
	return stops_after_drain ? is_drained : is_stopping;
}

void
stop_after_drain(void)
{
	stops_after_drain = true;
}

void
stop(void)
{
	is_stopping = true;
	wake_main();
}

void
stop_now(void)
{
	is_stopping = is_drained = true;
}

void
wait_ms(int64_t ms)
{
	int64_t until_us = monotonic_us() + ms * 1000;

	/* Slices: a signal that comes between the test and the sleep is seen soon all the same. */
	while (!stop_requested())
	{
		int64_t left_us = until_us - monotonic_us();

		if (left_us <= 0)
			return;
		if (left_us > 50000)
			left_us = 50000;
		nanosleep(&(struct timespec){0, left_us * 1000}, NULL);
	}
}

static void
on_stop_signal(int number)
{
	(void) number;
	if (atomic_fetch_add(&n_stop_signals, 1) > 0)
		_exit(EXIT_FORCED);
	is_stopping = true;
	wake_main();
}

static void
on_reload_signal(int number)
{
	(void) number;
	wants_reload = true;
	wake_main();
}

void
signals_take_reload(void)
{
	sigaction(SIGHUP, &(struct sigaction){.sa_handler = on_reload_signal}, NULL);
}

/* Something hangs that batch.drain does not reach: a server that does not answer. */
static void
on_alarm(int number)
{
	static const char text[] = "millrace: batch.drain is over, and something still hangs: ended at once\n";

	(void) number;
	if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
		_exit(EXIT_FORCED);
	_exit(EXIT_FORCED);
}

void
signals_end_within(int64_t ms)
{
	struct itimerval timer = {.it_value = {(time_t) (ms / 1000), (suseconds_t) (ms % 1000) * 1000}};

	setitimer(ITIMER_REAL, &timer, NULL);
}

bool
reload_requested(void)
{
	return atomic_exchange(&wants_reload, false);
}

void
wake_main(void)
{
	sem_post(&main_is_woken);
}

void
wait_for_wake(int64_t ms)
{
	int64_t until_us = clock_us() + ms * 1000;
	struct timespec until = {(time_t) (until_us / 1000000), (long) (until_us % 1000000) * 1000};

	sem_timedwait(&main_is_woken, &until);
}

void
signals_install(void)
{
	struct sigaction action = {.sa_handler = on_stop_signal};

	sem_init(&main_is_woken, 0, 0);
	sigaction(SIGALRM, &(struct sigaction){.sa_handler = on_alarm}, NULL);
	sigemptyset(&action.sa_mask);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
}

/* ---- names ---- */

/* Levenshtein distance, at most 99. */
size_t
name_distance(const char *a, const char *b)
{
	size_t row[100];
	size_t n_a = strlen(a), n_b = strlen(b);

	if (n_a >= 99 || n_b >= 99)
		return 99;
	for (size_t j = 0; j <= n_b; j++)
		row[j] = j;
	for (size_t i = 1; i <= n_a; i++)
	{
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= n_b; j++)
		{
			size_t best = diagonal + (a[i - 1] != b[j - 1]);

			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			diagonal = row[j];
			row[j] = best;
		}
	}
	return row[n_b];
}

const char *
name_nearest(const char *name, const char *const *choices, int n_choices)
{
	const char *nearest = NULL;
	size_t limit = strlen(name) / 3 + 1;

	for (int i = 0; i < n_choices; i++)
	{
		size_t distance = name_distance(name, choices[i]);

		if (distance <= limit)
		{
			limit = distance - (distance > 0);
			nearest = choices[i];
		}
	}
	return nearest;
}

/* ---- text ---- */

#define EVERY_BYTE(x) (UINT64_C(0x0101010101010101) * (x))

/* Bytes of the sequence that starts at c, or 0.  As RFC 3629: no overlong form, no surrogate, nothing above U+10FFFF. */
static size_t
utf8_length(const unsigned char *c, size_t n_bytes)
{
	static const unsigned char least[] = {0x80, 0x80, 0xA0, 0x90}, most[] = {0xBF, 0x9F, 0xBF, 0x8F};
	size_t length = c[0] < 0xC2 ? 0 : c[0] < 0xE0 ? 2 : c[0] < 0xF0 ? 3 : c[0] < 0xF5 ? 4 : 0;
	int range = c[0] == 0xED ? 1 : c[0] == 0xE0 ? 2 : c[0] == 0xF0 ? 3 : 0;
	unsigned char top = c[0] == 0xF4 ? most[3] : range == 1 ? most[1] : 0xBF;

	if (length == 0 || length > n_bytes ||
		c[1] < (range == 2		 ? least[2]
					: range == 3 ? least[3]
								 : 0x80) ||
		c[1] > top)
		return 0;
	for (size_t i = 2; i < length; i++)
		if ((c[i] & 0xC0) != 0x80)
			return 0;
	return length;
}

/* Not 0 when a byte is NUL or above 127; perhaps also behind such a byte. */
static inline uint64_t
has_zero_or_high(uint64_t word)
{
	return (word | (word - EVERY_BYTE(0x01))) & EVERY_BYTE(0x80);
}

size_t
line_bytes(const char *data, size_t n_bytes)
{
	if (n_bytes > 0 && data[n_bytes - 1] == '\n')
		n_bytes--;
	if (n_bytes > 0 && data[n_bytes - 1] == '\r')
		n_bytes--;
	return n_bytes;
}

const char *
text_defect(const char *text, size_t n_bytes, size_t *at)
{
	const unsigned char *bytes = (const unsigned char *) text;
	size_t i = 0;

	while (i < n_bytes)
	{
		uint64_t words[4];

		/* ASCII bytes, none of them NUL: by 32, and by 8. */
		while (n_bytes - i >= 32)
		{
			memcpy(words, bytes + i, 32);
			if ((has_zero_or_high(words[0]) | has_zero_or_high(words[1]) | has_zero_or_high(words[2]) |
				 has_zero_or_high(words[3])) != 0)
				break;
			i += 32;
		}
		if (i == n_bytes)
			break;
		if (n_bytes - i >= 8)
		{
			memcpy(words, bytes + i, 8);
			if (has_zero_or_high(words[0]) == 0)
			{
				i += 8;
				continue;
			}
		}
		*at = i;
		if (bytes[i] == 0)
			return "NUL character";
		if (bytes[i] < 0x80)
		{
			i++;
			continue;
		}
		size_t length = utf8_length(bytes + i, n_bytes - i);
		if (length == 0)
			return "invalid UTF-8";
		i += length;
	}
	return NULL;
}

/* ---- time ---- */

#define DAY_US INT64_C(86400000000)

int64_t
start_of_day(int64_t time_us)
{
	int64_t rest = time_us % DAY_US;

	return time_us - rest - (rest < 0 ? DAY_US : 0);
}

/* Days since 1970-01-01 in the proleptic Gregorian calendar; year >= 1.  Counts from 1 March of year 0. */
static int64_t
days_from_civil(int64_t year, int month, int day)
{
	int64_t y = month <= 2 ? year - 1 : year;
	int64_t era = y / 400, in_era = y % 400;
	int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

	return era * 146097 + in_era * 365 + in_era / 4 - in_era / 100 + day_of_year - 719468;
}

/* At least n digits; returns their end. */
static char *
put_digits(char *out, int64_t value, int n)
{
	char digits[20];
	int n_digits = 0;

	for (; value > 0 || n_digits < n; value /= 10)
		digits[n_digits++] = (char) ('0' + value % 10);
	while (n_digits > 0)
		*out++ = digits[--n_digits];
	return out;
}

void
time_format(int64_t time_us, char *out, size_t out_bytes)
{
	int64_t day_us = start_of_day(time_us), rest = time_us - day_us;
	/* Days since 1 March of year 0, by eras of 400 years. */
	int64_t days = day_us / DAY_US + 719468, era = (days >= 0 ? days : days - 146096) / 146097;
	int64_t in_era = days - era * 146097;
	int64_t year_in_era = (in_era - in_era / 1460 + in_era / 36524 - in_era / 146096) / 365;
	int64_t day_of_year = in_era - (365 * year_in_era + year_in_era / 4 - year_in_era / 100);
	int64_t month_from_march = (5 * day_of_year + 2) / 153;
	int64_t day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
	int64_t month = month_from_march + (month_from_march < 10 ? 3 : -9);
	int64_t year = year_in_era + era * 400 + (month <= 2);
	char text[64], *at = put_digits(text, year > 0 ? year : 1 - year, 4);

	*at++ = '-';
	at = put_digits(at, month, 2);
	*at++ = '-';
	at = put_digits(at, day, 2);
	*at++ = ' ';
	at = put_digits(at, rest / 3600000000, 2);
	*at++ = ':';
	at = put_digits(at, rest / 60000000 % 60, 2);
	*at++ = ':';
	at = put_digits(at, rest / 1000000 % 60, 2);
	*at++ = '.';
	at = put_digits(at, rest % 1000000, 6);
	memcpy(at, "+00 BC", 6);
	at += year > 0 ? 3 : 6;
	size_t n_bytes = (size_t) (at - text) < out_bytes ? (size_t) (at - text) : out_bytes - 1;
	memcpy(out, text, n_bytes);
	out[n_bytes] = '\0';
}

/* Reads n digits at *at into *value; false when there are fewer. */
static bool
digits(const char **at, const char *end, int n, int *value)
{
	if (end - *at < n)
		return false;
	*value = 0;
	for (int i = 0; i < n; i++, (*at)++)
	{
		if (**at < '0' || **at > '9')
			return false;
		*value = *value * 10 + (**at - '0');
	}
	return true;
}

/* [.ffffff…] behind the seconds, rounded to microseconds as PostgreSQL does. */
static bool
parse_fraction(const char **at, const char *end, int64_t *fraction_us)
{
	int64_t value = 0;
	int n = 0;
	bool round_up = false;

	*fraction_us = 0;
	if (*at == end || **at != '.')
		return true;
	for ((*at)++; *at < end && **at >= '0' && **at <= '9'; (*at)++, n++)
	{
		if (n < 6)
			value = value * 10 + (**at - '0');
		else if (n == 6)
			round_up = **at >= '5';
	}
	for (int i = n; i < 6; i++)
		value *= 10;
	*fraction_us = value + round_up;
	return n <= 9; /* longer ones may round the other way in the server's floating point */
}

/* Z, +hh, +hhmm, +hh:mm, +hh:mm:ss. */
static bool
parse_zone(const char **at, const char *end, int64_t *offset_us, bool *has_zone)
{
	int hours, minutes = 0, seconds = 0;

	*offset_us = 0;
	*has_zone = *at < end;
	if (*at == end)
		return true;
	if (**at == 'Z' || **at == 'z')
	{
		(*at)++;
		return true;
	}
	if (**at != '+' && **at != '-')
		return false;
	int sign = *(*at)++ == '-' ? -1 : 1;
	if (!digits(at, end, 2, &hours))
		return false;
	if (*at < end && **at == ':')
	{
		(*at)++;
		if (!digits(at, end, 2, &minutes))
			return false;
		if (*at < end && **at == ':')
		{
			(*at)++;
			if (!digits(at, end, 2, &seconds))
				return false;
		}
	}
	else if (*at < end && !digits(at, end, 2, &minutes))
		return false;
	*offset_us = (int64_t) sign * (hours * 3600 + minutes * 60 + seconds) * 1000000;
	return hours <= 15 && minutes < 60 && seconds < 60;
}

bool
time_parse(const char *text, size_t n_bytes, int64_t *time_us, bool *has_zone)
{
	static const int month_days[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	const char *at = text, *end = text + n_bytes;
	int year, month, day, hour = 0, minute = 0, second = 0;
	int64_t fraction_us = 0, offset_us = 0;

	*has_zone = false;
	if (!digits(&at, end, 4, &year) || at == end || *at++ != '-' || !digits(&at, end, 2, &month) ||
		at == end || *at++ != '-' || !digits(&at, end, 2, &day))
		return false;
	if (year < 1 || month < 1 || month > 12 || day < 1 || day > month_days[month - 1] ||
		(month == 2 && day == 29 && (year % 4 != 0 || (year % 100 == 0 && year % 400 != 0))))
		return false;
	if (at < end)
	{
		if ((*at != ' ' && *at != 'T' && *at != 't') || end - at < 6)
			return false;
		at++;
		if (!digits(&at, end, 2, &hour) || *at++ != ':' || !digits(&at, end, 2, &minute))
			return false;
		if (at < end && *at == ':')
		{
			at++;
			if (!digits(&at, end, 2, &second) || !parse_fraction(&at, end, &fraction_us))
				return false;
		}
		if (at < end && *at == ' ')
			at++;
		if (!parse_zone(&at, end, &offset_us, has_zone) || at != end)
			return false;
		if (hour > 23 || minute > 59 || second > 59)
			return false;
	}
	*time_us = days_from_civil(year, month, day) * DAY_US +
		(int64_t) (hour * 3600 + minute * 60 + second) * 1000000 + fraction_us - offset_us;
	return true;
}

/* ---- chance ---- */

/* SplitMix64. */
uint64_t
random_bits(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);

	z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
	return z ^ (z >> 31);
}

double
random_share(uint64_t *state)
{
	return (double) (random_bits(state) >> 11) * 0x1p-53;
}

int64_t
random_between(uint64_t *state, int64_t least, int64_t most)
{
	return least + (int64_t) (random_share(state) * (double) (most - least + 1));
}

bool
happens(uint64_t *state, double share)
{
	return share > 0 && random_share(state) < share;
}

void
uuid_format(uint64_t high, uint64_t low, char *out, size_t out_bytes)
{
	/* RFC 9562: version 4, variant 10. */
	snprintf(out, out_bytes, "%08" PRIx64 "-%04" PRIx64 "-4%03" PRIx64 "-%04" PRIx64 "-%012" PRIx64,
			 high >> 32, high >> 16 & 0xFFFF, high & 0xFFF, (low >> 48 & 0x3FFF) | 0x8000,
			 low & UINT64_C(0xFFFFFFFFFFFF));
}
