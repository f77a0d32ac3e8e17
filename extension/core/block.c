/*
 * block.c: the format of factors at rest (layout in core.h), and the hash that guards it.
 *
 * The hash is XXH64, written here from its public specification: forty lines instead of one more library at run
 * time, several GB/s, and anybody can check a block with a stock tool.  The same function places keys in
 * millrace.split(), so it must never change.
 */
#include "core.h"

#include <string.h>

#define PRIME1 UINT64_C(0x9E3779B185EBCA87)
#define PRIME2 UINT64_C(0xC2B2AE3D27D4EB4F)
#define PRIME3 UINT64_C(0x165667B19E3779F9)
#define PRIME4 UINT64_C(0x85EBCA77C2B2AE63)
#define PRIME5 UINT64_C(0x27D4EB2F165667C5)

#define ID_BIGINT 1
#define ID_TEXT 2

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LE64(x) (x)
#define LE32(x) (x)
#define LE16(x) (x)
#else
#define LE64(x) __builtin_bswap64(x)
#define LE32(x) __builtin_bswap32(x)
#define LE16(x) __builtin_bswap16(x)
#endif

static inline uint64_t
get64(const unsigned char *p)
{
	uint64_t x;

	memcpy(&x, p, sizeof(x));
	return LE64(x);
}

static inline uint32_t
get32(const unsigned char *p)
{
	uint32_t x;

	memcpy(&x, p, sizeof(x));
	return LE32(x);
}

static inline uint16_t
get16(const unsigned char *p)
{
	uint16_t x;

	memcpy(&x, p, sizeof(x));
	return LE16(x);
}

static inline void
put64(unsigned char *p, uint64_t x)
{
	x = LE64(x);
	memcpy(p, &x, sizeof(x));
}

static inline void
put32(unsigned char *p, uint32_t x)
{
	x = LE32(x);
	memcpy(p, &x, sizeof(x));
}

static inline uint64_t
rotl(uint64_t x, int bits)
{
	return x << bits | x >> (64 - bits);
}

static inline uint64_t
xxh_round(uint64_t acc, uint64_t lane)
{
	return rotl(acc + lane * PRIME2, 31) * PRIME1;
}

static inline uint64_t
xxh_merge(uint64_t hash, uint64_t acc)
{
	return (hash ^ xxh_round(0, acc)) * PRIME1 + PRIME4;
}

uint64_t
mrc_hash64(const void *data, size_t n_bytes, uint64_t seed)
{
	const unsigned char *p = data;
	size_t left = n_bytes;
	uint64_t hash = seed + PRIME5;

	if (left >= 32)
	{
		uint64_t acc[4] = {seed + PRIME1 + PRIME2, seed + PRIME2, seed, seed - PRIME1};

		for (; left >= 32; p += 32, left -= 32)
			for (int i = 0; i < 4; i++)
				acc[i] = xxh_round(acc[i], get64(p + 8 * i));
		hash = rotl(acc[0], 1) + rotl(acc[1], 7) + rotl(acc[2], 12) + rotl(acc[3], 18);
		for (int i = 0; i < 4; i++)
			hash = xxh_merge(hash, acc[i]);
	}
	hash += n_bytes;
	for (; left >= 8; p += 8, left -= 8)
		hash = rotl(hash ^ xxh_round(0, get64(p)), 27) * PRIME1 + PRIME4;
	if (left >= 4)
	{
		hash = rotl(hash ^ get32(p) * PRIME1, 23) * PRIME2 + PRIME3;
		p += 4;
		left -= 4;
	}
	for (; left > 0; p++, left--)
		hash = rotl(hash ^ *p * PRIME5, 11) * PRIME1;
	hash = (hash ^ hash >> 33) * PRIME2;
	hash = (hash ^ hash >> 29) * PRIME3;
	return hash ^ hash >> 32;
}

/* ---- SipHash ---- */

static void
sip_rounds(uint64_t *v, int n)
{
	for (; n > 0; n--)
	{
		v[0] += v[1];
		v[2] += v[3];
		v[1] = rotl(v[1], 13) ^ v[0];
		v[3] = rotl(v[3], 16) ^ v[2];
		v[0] = rotl(v[0], 32);
		v[2] += v[1];
		v[0] += v[3];
		v[1] = rotl(v[1], 17) ^ v[2];
		v[3] = rotl(v[3], 21) ^ v[0];
		v[2] = rotl(v[2], 32);
	}
}

void
mrc_seal(const unsigned char *key, const void *data, size_t n_bytes, unsigned char *seal)
{
	const unsigned char *p = data;
	uint64_t k[2] = {get64(key), get64(key + 8)};
	uint64_t v[4] = {k[0] ^ UINT64_C(0x736f6d6570736575), k[1] ^ UINT64_C(0x646f72616e646f6d) ^ 0xee,
					 k[0] ^ UINT64_C(0x6c7967656e657261), k[1] ^ UINT64_C(0x7465646279746573)};
	uint64_t last = (uint64_t) n_bytes << 56;
	size_t left = n_bytes;

	for (; left >= 8; p += 8, left -= 8)
	{
		uint64_t word = get64(p);

		v[3] ^= word;
		sip_rounds(v, 2);
		v[0] ^= word;
	}
	for (size_t i = 0; i < left; i++)
		last |= (uint64_t) p[i] << 8 * i;
	v[3] ^= last;
	sip_rounds(v, 2);
	v[0] ^= last;
	v[2] ^= 0xee;
	sip_rounds(v, 4);
	put64(seal, v[0] ^ v[1] ^ v[2] ^ v[3]);
	v[1] ^= 0xdd;
	sip_rounds(v, 4);
	put64(seal + 8, v[0] ^ v[1] ^ v[2] ^ v[3]);
}

/* Bytes of the ids section, SIZE_MAX when too big. */
static size_t
id_bytes(bool text, int64_t n_rows, size_t n_string_bytes)
{
	if (!text)
		return (size_t) n_rows * 8;
	if (n_string_bytes > UINT32_MAX)
		return SIZE_MAX;
	return ((size_t) n_rows * 4 + n_string_bytes + 7) / 8 * 8;
}

size_t
mrc_block_bytes(bool text, int64_t n_rows, int rank, size_t n_string_bytes)
{
	size_t ids;

	if (n_rows < 0 || n_rows > INT32_MAX || rank < 1 || rank > MRC_MAX_RANK)
		return 0;
	ids = id_bytes(text, n_rows, n_string_bytes);
	if (ids == SIZE_MAX)
		return 0;
	return MRC_BLOCK_HEADER_BYTES + ids + (size_t) n_rows * rank * 4;
}

static uint64_t
checksum(const unsigned char *data, size_t n_bytes)
{
	return mrc_hash64(data + MRC_BLOCK_HEADER_BYTES, n_bytes - MRC_BLOCK_HEADER_BYTES,
					  mrc_hash64(data, 32, 0));
}

static unsigned char *
put_strings(unsigned char *p, int64_t n_rows, const char *strings, const int64_t *starts)
{
	size_t n_bytes = (size_t) (starts[n_rows] - starts[0]);
	size_t padding = id_bytes(true, n_rows, n_bytes) - n_bytes - (size_t) n_rows * 4;

	for (int64_t i = 0; i < n_rows; i++, p += 4)
		put32(p, (uint32_t) (starts[i + 1] - starts[0]));
	if (n_bytes > 0)
		memcpy(p, strings + starts[0], n_bytes);
	memset(p + n_bytes, 0, padding);
	return p + n_bytes + padding;
}

void
mrc_block_encode(unsigned char *out, bool text, int64_t n_rows, int rank, const int64_t *ints,
				 const char *strings, const int64_t *starts, const float *factors)
{
	size_t ids = id_bytes(text, n_rows, text ? (size_t) (starts[n_rows] - starts[0]) : 0);
	size_t n_factors = (size_t) n_rows * rank;
	unsigned char *p = out + MRC_BLOCK_HEADER_BYTES;

	memset(out, 0, MRC_BLOCK_HEADER_BYTES);
	memcpy(out, "MRFB", 4);
	out[4] = MRC_BLOCK_VERSION;
	out[6] = text ? ID_TEXT : ID_BIGINT;
	put32(out + 8, (uint32_t) n_rows);
	put32(out + 12, (uint32_t) rank);
	put64(out + 16, ids);
	put64(out + 24, n_factors * 4);
	if (text)
		p = put_strings(p, n_rows, strings, starts);
	else
		for (int64_t i = 0; i < n_rows; i++, p += 8)
			put64(p, (uint64_t) ints[i]);
	for (size_t i = 0; i < n_factors; i++, p += 4)
	{
		uint32_t bits;

		memcpy(&bits, &factors[i], 4);
		put32(p, bits);
	}
	put64(out + 32, checksum(out, (size_t) (p - out)));
}

/* The header's own fields, and that the sections fill n_bytes exactly.  Every product is bounded before it is used. */
static const char *
check_header(MrcBlock *block, const unsigned char *data, size_t n_bytes)
{
	static const unsigned char zeros[24];
	uint64_t n_rows;
	uint64_t rank;
	uint64_t ids;
	uint64_t factors;

	if (n_bytes < MRC_BLOCK_HEADER_BYTES)
		return "it is shorter than its header";
	if (memcmp(data, "MRFB", 4) != 0)
		return "it does not start with the signature";
	if (get16(data + 4) != MRC_BLOCK_VERSION)
		return "its format version is unknown";
	if ((data[6] != ID_BIGINT && data[6] != ID_TEXT) || data[7] != 0 ||
		memcmp(data + 40, zeros, sizeof(zeros)) != 0)
		return "its header is malformed";
	n_rows = get32(data + 8);
	rank = get32(data + 12);
	ids = get64(data + 16);
	factors = get64(data + 24);
	if (n_rows > INT32_MAX || rank < 1 || rank > MRC_MAX_RANK || factors != n_rows * rank * 4)
		return "its shape is impossible";
	if (ids % 8 != 0 || ids > n_bytes || factors > n_bytes ||
		MRC_BLOCK_HEADER_BYTES + ids + factors != n_bytes)
		return "its length does not match its header";
	if (data[6] == ID_BIGINT ? ids != n_rows * 8 : ids < n_rows * 4)
		return "its ids section has the wrong length";
	block->text = data[6] == ID_TEXT;
	block->n_rows = (int64_t) n_rows;
	block->rank = (int) rank;
	block->ids = data + MRC_BLOCK_HEADER_BYTES;
	block->factors = block->ids + ids;
	block->n_id_bytes = (size_t) ids;
	return NULL;
}

static bool
strings_in_order(const MrcBlock *block)
{
	uint64_t room = block->n_id_bytes - (uint64_t) block->n_rows * 4;
	uint64_t end = 0;

	for (int64_t i = 0; i < block->n_rows; i++)
	{
		uint64_t next = get32(block->ids + 4 * i);

		if (next < end || next > room)
			return false;
		end = next;
	}
	return true;
}

MrcStatus
mrc_block_open(MrcBlock *block, const unsigned char *data, size_t n_bytes, const char **why)
{
	*why = check_header(block, data, n_bytes);
	if (*why == NULL && checksum(data, n_bytes) != get64(data + 32))
		*why = "its checksum is wrong";
	if (*why == NULL && block->text && !strings_in_order(block))
		*why = "its ids section is malformed";
	return *why == NULL ? MRC_OK : MRC_CORRUPT;
}

int64_t
mrc_block_int(const MrcBlock *block, int64_t row)
{
	return (int64_t) get64(block->ids + 8 * row);
}

const char *
mrc_block_string(const MrcBlock *block, int64_t row, size_t *n_bytes)
{
	uint32_t lo = row == 0 ? 0 : get32(block->ids + 4 * (row - 1));

	*n_bytes = get32(block->ids + 4 * row) - lo;
	return (const char *) block->ids + 4 * block->n_rows + lo;
}

void
mrc_block_factors(const MrcBlock *block, int64_t lo, int64_t hi, float *out)
{
	const unsigned char *p = block->factors + (size_t) lo * block->rank * 4;
	size_t n = (size_t) (hi - lo) * block->rank;

	for (size_t i = 0; i < n; i++, p += 4)
	{
		uint32_t bits = get32(p);

		memcpy(&out[i], &bits, 4);
	}
}
