/*
 * image.c: what serving reads of a model's lists: the category of each item, and baselines, which are lists for everybody.
 *
 * Categories and lists are wanted in the version's rows.  So an image is made from the tables of lists.c, one piece of
 * memory with offsets in it, for one value of millrace.model.lists, which changes with the active version and with every
 * list.  A reader notices by his own snapshot that there is another, and nobody waits.  It is kept in a file for all
 * backends (cache.c).
 *
 *     header | category of each row | names of categories | other items with features | baselines
 *
 * The baselines are top, random, and those of set_baseline.  Of top and random the image also has the places of those
 * items that are the first of their category, so that top_5 is the first five of these.
 */
#include "model.h"

#define FIRST_ROOM 1000
#define MAX_OPEN 8 /* images kept by a backend */

PG_FUNCTION_INFO_V1(mr_baseline);

/* ---- names ---- */

char
mr_baseline_built_in(const char *name, int64 *n)
{
	Size length = strncmp(name, "top", 3) == 0 ? 3 : strncmp(name, "random", 6) == 0 ? 6 : 0;
	const char *digits = name + length + 1;

	*n = 0;
	if (length == 0)
		return 0;
	if (name[length] == '\0')
		return name[0];
	if (name[length] != '_' || *digits == '\0' || strspn(digits, "0123456789") != strlen(digits))
		return 0;
	*n = strlen(digits) < 10 ? strtoll(digits, NULL, 10) : INT32_MAX;
	if (*n == 0)
		*n = -1;
	return name[0];
}

void
mr_baseline_unknown(const char *model, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("model \"%s\" has no baseline \"%s\"", model, name),
			 errhint("There are top, random, these with a number (top_5), and those of "
					 "millrace.set_baseline(): SELECT name FROM millrace.custom_baseline WHERE model = %s.",
					 quote_literal_cstr(model))));
}

/* ---- the image ---- */

/* All offsets are from its begin, and aligned to 8. */
typedef struct Header
{
	pg_uuid_t version; /* whose rows these are */
	int64 n_items;	   /* of the version */
	int32 has_features;
	int32 n_categories;
	uint64 category; /* int32[n_items] */
	uint64 name_end; /* int64[n_categories]: where each name ends */
	uint64 names;
	int64 n_others; /* items with features that the version does not know, in bytewise order */
	uint64 other_end;
	uint64 others;
	uint64 other_category;
	int32 n_baselines;
	uint64 baselines; /* MrListsBaseline[n_baselines] */
} Header;

typedef struct MrListsBaseline
{
	uint64 name;
	int64 n;
	uint64 row;		 /* int32[n] */
	uint64 score;	 /* float[n] */
	uint64 category; /* int32[n]; 0: there are no features */
	uint64 item_end; /* int64[n]: where each id ends, which is empty for a known item; 0: all are known */
	uint64 items;
	int64 n_first;
	uint64 first; /* int32[n_first]: places of items that are the first of their category; 0: all are */
} MrListsBaseline;

typedef struct MrListsImage
{
	MemoryContext context;
	char *model;
	pg_uuid_t uuid;
	int n_pins;
	uint64 last_use;
	MrCache *cache; /* NULL: memory of its own */
	const char *base;
	const Header *header;
	MrLists lists;
} MrListsImage;

/* A piece of memory that grows. */
typedef struct Writer
{
	char *data;
	Size n_bytes;
	Size room;
} Writer;

/* memory may be NULL: cleared. */
static void
append(Writer *writer, const void *memory, Size n_bytes)
{
	Size wanted = writer->n_bytes + n_bytes;

	if (wanted > writer->room)
	{
		writer->room = wanted * 2;
		writer->data = mr_grow(writer->data, writer->room);
	}
	if (n_bytes == 0)
		return;
	if (memory)
		memcpy(writer->data + writer->n_bytes, memory, n_bytes);
	else
		memset(writer->data + writer->n_bytes, 0, n_bytes);
	writer->n_bytes = wanted;
}

/* The same at an aligned offset, which it returns. */
static uint64
put(Writer *writer, const void *memory, Size n_bytes)
{
	uint64 offset = TYPEALIGN(64, writer->n_bytes);

	append(writer, NULL, offset - writer->n_bytes);
	append(writer, memory, n_bytes);
	return offset;
}

/* Texts one after the other, and where each ends. */
typedef struct Texts
{
	int64 n;
	int64 room;
	int64 *end;
	Writer bytes;
} Texts;

static void
add_text(Texts *texts, const char *data, Size n_bytes)
{
	if (texts->n == texts->room)
	{
		texts->room = Max(FIRST_ROOM, texts->room * 2);
		texts->end = mr_grow(texts->end, texts->room * sizeof(int64));
	}
	append(&texts->bytes, data, n_bytes);
	texts->end[texts->n++] = texts->bytes.n_bytes;
}

static MrKey
text_at(const char *bytes, const int64 *end, int64 i)
{
	int64 start = i > 0 ? end[i - 1] : 0;

	return (MrKey){.text = true, .bytes = bytes + start, .n_bytes = end[i] - start};
}

/* What an image is made from. */
typedef struct Builder
{
	const MrModel *model;
	Writer writer;
	Header header;
	int32 *category; /* of each row */
	Texts names;
	Texts others;
	int32 *other_category;
	int64 other_room;
	MrListsBaseline *baselines;
	int32 baseline_room;
} Builder;

/* The features' blocks: items in the order of their categories. */
static void
add_features(Builder *builder, ArrayType *items, ArrayType *categories)
{
	Datum *item;
	Datum *category;
	int n;
	int n_categories;

	deconstruct_array(items, TEXTOID, -1, false, TYPALIGN_INT, &item, NULL, &n);
	deconstruct_array(categories, TEXTOID, -1, false, TYPALIGN_INT, &category, NULL, &n_categories);
	for (int i = 0; i < Min(n, n_categories); i++)
	{
		MrKey name = mr_key_from_text(DatumGetTextPP(category[i]));
		MrKey key = mr_key_from_text(DatumGetTextPP(item[i]));
		int64 row = mr_ids_find(&builder->model->items.ids, &key);
		Texts *names = &builder->names;
		MrKey last = names->n > 0 ? text_at(names->bytes.data, names->end, names->n - 1) : name;

		if (names->n == 0 || mr_compare_keys(&last, &name) != 0)
			add_text(names, name.bytes, name.n_bytes);
		if (row >= 0)
		{
			builder->category[row] = (int32) names->n - 1;
			continue;
		}
		add_text(&builder->others, key.bytes, key.n_bytes);
		if (builder->others.n > builder->other_room)
		{
			builder->other_room = builder->others.room;
			builder->other_category = mr_grow(builder->other_category, builder->other_room * sizeof(int32));
		}
		builder->other_category[builder->others.n - 1] = (int32) names->n - 1;
	}
}

static int
compare_others(const void *a, const void *b, void *arg)
{
	const Texts *others = arg;
	MrKey x = text_at(others->bytes.data, others->end, *(const int32 *) a);
	MrKey y = text_at(others->bytes.data, others->end, *(const int32 *) b);

	return mr_compare_keys(&x, &y);
}

static void
sort_others(Builder *builder)
{
	Texts *others = &builder->others;
	int32 *order = MemoryContextAllocHuge(CurrentMemoryContext, others->n * sizeof(int32) + 1);
	int32 *category = MemoryContextAllocHuge(CurrentMemoryContext, others->n * sizeof(int32) + 1);
	Texts sorted = {0};

	for (int64 i = 0; i < others->n; i++)
		order[i] = (int32) i;
	qsort_arg(order, others->n, sizeof(int32), compare_others, others);
	for (int64 i = 0; i < others->n; i++)
	{
		MrKey item = text_at(others->bytes.data, others->end, order[i]);

		add_text(&sorted, item.bytes, item.n_bytes);
		category[i] = builder->other_category[order[i]];
	}
	*others = sorted;
	builder->other_category = category;
}

/* The rows of a query of blocks, one by one. */
static void
for_each_block(Builder *builder, const char *sql,
			   void (*take)(Builder *builder, HeapTuple row, TupleDesc desc))
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(builder->model->name)};
	MemoryContext context = CurrentMemoryContext;
	Portal portal = SPI_cursor_open_with_args(NULL, sql, 1, types, values, NULL, true, 0);

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, 1);
		MemoryContextSwitchTo(context);
		if (SPI_processed == 0)
			break;
		take(builder, SPI_tuptable->vals[0], SPI_tuptable->tupdesc);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
}

static void
take_features(Builder *builder, HeapTuple row, TupleDesc desc)
{
	bool null;

	builder->header.has_features = 1;
	add_features(builder, DatumGetArrayTypeP(SPI_getbinval(row, desc, 1, &null)),
				 DatumGetArrayTypeP(SPI_getbinval(row, desc, 2, &null)));
}

static void
put_texts(Writer *writer, const Texts *texts, uint64 *end, uint64 *bytes)
{
	*end = put(writer, texts->end, texts->n * sizeof(int64));
	*bytes = put(writer, texts->bytes.data, texts->bytes.n_bytes);
}

static void
build_features(Builder *builder)
{
	Header *header = &builder->header;
	int64 n = header->n_items;

	builder->category = MemoryContextAllocHuge(CurrentMemoryContext, n * sizeof(int32) + 1);
	memset(builder->category, -1, n * sizeof(int32));
	for_each_block(
		builder, "SELECT items, categories FROM millrace.item_features_block WHERE model = $1 ORDER BY block",
		take_features);
	sort_others(builder);
	header->n_categories = (int32) builder->names.n;
	header->n_others = builder->others.n;
	header->category = put(&builder->writer, builder->category, n * sizeof(int32));
	put_texts(&builder->writer, &builder->names, &header->name_end, &header->names);
	put_texts(&builder->writer, &builder->others, &header->other_end, &header->others);
	header->other_category =
		put(&builder->writer, builder->other_category, builder->others.n * sizeof(int32));
}

static int32
category_of_other(const Header *header, const char *base, const MrKey *key)
{
	const int64 *end = (const int64 *) (base + header->other_end);
	int64 lo = 0;
	int64 hi = header->n_others;

	while (lo < hi)
	{
		int64 middle = lo + (hi - lo) / 2;
		MrKey item = text_at(base + header->others, end, middle);
		int order = mr_compare_keys(&item, key);

		if (order == 0)
			return ((const int32 *) (base + header->other_category))[middle];
		if (order < 0)
			lo = middle + 1;
		else
			hi = middle;
	}
	return -1;
}

/* A baseline that is being made: an item with its score, one after the other. */
typedef struct Draft
{
	int64 n;
	int64 room;
	int32 *row;
	float *score;
	int32 *category;
	Texts items; /* empty for those that the model knows */
	bool all_known;
} Draft;

static void
list_begin(Draft *list)
{
	memset(list, 0, sizeof(*list));
	list->all_known = true;
}

static void
list_add(const Builder *builder, Draft *list, int64 row, const MrKey *key, float score)
{
	char space[MR_KEY_SPACE];
	MrKey item = {.text = true, .bytes = ""};

	if (list->n == list->room)
	{
		int64 n = list->room = Max(FIRST_ROOM, list->room * 2);

		list->row = mr_grow(list->row, n * sizeof(int32));
		list->score = mr_grow(list->score, n * sizeof(float));
		list->category = mr_grow(list->category, n * sizeof(int32));
	}
	if (row < 0)
	{
		list->all_known = false;
		(void) mr_key_convert(key, true, &item, space);
	}
	add_text(&list->items, item.bytes, item.n_bytes);
	list->row[list->n] = (int32) row;
	list->score[list->n] = score;
	list->category[list->n++] =
		row >= 0 ? builder->category[row] : category_of_other(&builder->header, builder->writer.data, &item);
}

/* Places of the items that are the first of their category, for top_5; of any other baseline nobody asks. */
static void
list_first(Builder *builder, const Draft *list, MrListsBaseline *baseline)
{
	int32 *first;
	bool *taken;

	if (!builder->header.has_features)
		return;
	first = MemoryContextAllocHuge(CurrentMemoryContext, list->n * sizeof(int32) + 1);
	taken = palloc0(builder->header.n_categories + 1);
	for (int64 i = 0; i < list->n; i++)
		if (list->category[i] < 0 || !taken[list->category[i]])
		{
			if (list->category[i] >= 0)
				taken[list->category[i]] = true;
			first[baseline->n_first++] = (int32) i;
		}
	baseline->first = put(&builder->writer, first, baseline->n_first * sizeof(int32));
	pfree(first);
	pfree(taken);
}

static void
list_end(Builder *builder, const Draft *list, const char *name)
{
	Writer *writer = &builder->writer;
	Header *header = &builder->header;
	MrListsBaseline baseline = {.n = list->n};
	int64 number;

	baseline.name = put(writer, name, strlen(name) + 1);
	baseline.row = put(writer, list->row, list->n * sizeof(int32));
	baseline.score = put(writer, list->score, list->n * sizeof(float));
	if (header->has_features)
		baseline.category = put(writer, list->category, list->n * sizeof(int32));
	if (!list->all_known)
		put_texts(writer, &list->items, &baseline.item_end, &baseline.items);
	if (mr_baseline_built_in(name, &number))
		list_first(builder, list, &baseline);
	if (header->n_baselines == builder->baseline_room)
	{
		builder->baseline_room = builder->baseline_room * 2 + 4;
		builder->baselines = mr_grow(builder->baselines, builder->baseline_room * sizeof(MrListsBaseline));
	}
	builder->baselines[header->n_baselines++] = baseline;
}

/* Score and place in one number, of which the least is the best: scores are not negative, so their bits order as they do. */
static uint64
order_of(float score, int64 place)
{
	uint32 bits;

	memcpy(&bits, &score, sizeof(bits));
	return (uint64) ~bits << 32 | (uint32) place;
}

#define ST_SORT sort_orders
#define ST_ELEMENT_TYPE uint64
#define ST_COMPARE(a, b) ((*(a) > *(b)) - (*(a) < *(b)))
#define ST_SCOPE static
#define ST_CHECK_FOR_INTERRUPTS
#define ST_DECLARE
#define ST_DEFINE
#include "lib/sort_template.h"

/* Items by their scores, which are not negative, equal ones in the order of ids. */
static void
build_ordered(Builder *builder, const MrIds *ids, const float *scores, const char *name)
{
	uint64 *order = MemoryContextAllocHuge(CurrentMemoryContext, ids->n * sizeof(uint64) + 1);
	const MrIds *items = &builder->model->items.ids;
	Draft list;

	for (int64 i = 0; i < ids->n; i++)
		order[i] = order_of(scores[i], i);
	sort_orders(order, ids->n);
	list_begin(&list);
	for (int64 i = 0; i < ids->n; i++)
	{
		int64 at = (uint32) order[i];
		MrKey key = mr_ids_key(ids, at);

		list_add(builder, &list, ids == items ? at : mr_ids_find(items, &key), &key, scores[at]);
	}
	list_end(builder, &list, name);
	pfree(order);
}

/* Numbers in [0, 1) that the seed and the ids decide. */
static void
build_random(Builder *builder, const char *seed)
{
	const MrIds *ids = &builder->model->items.ids;
	float *scores = MemoryContextAllocHuge(CurrentMemoryContext, ids->n * sizeof(float) + 1);
	uint64 start = mrc_hash64(seed, strlen(seed), 0);

	for (int64 row = 0; row < ids->n; row++)
	{
		MrKey key = mr_ids_key(ids, row);
		char space[MR_KEY_SPACE];
		MrKey item;

		(void) mr_key_convert(&key, true, &item, space);
		scores[row] = (float) (mrc_hash64(item.bytes, item.n_bytes, start) >> 40) / 16777216.0f;
	}
	build_ordered(builder, ids, scores, "random");
	pfree(scores);
}

typedef struct CustomBuilder
{
	Builder builder; /* first, so that one is the other */
	char *name;		 /* NULL: none is begun */
	Draft list;
} CustomBuilder;

static void
take_baseline(Builder *builder, HeapTuple row, TupleDesc desc)
{
	CustomBuilder *custom = (CustomBuilder *) builder;
	char *name = SPI_getvalue(row, desc, 1);
	Datum *items;
	Datum *scores;
	int n;
	int n_scores;
	bool null;

	deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(row, desc, 2, &null)), TEXTOID, -1, false,
					  TYPALIGN_INT, &items, NULL, &n);
	deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(row, desc, 3, &null)), FLOAT4OID, sizeof(float4), true,
					  TYPALIGN_INT, &scores, NULL, &n_scores);
	if (custom->name == NULL || strcmp(name, custom->name) != 0)
	{
		if (custom->name)
			list_end(builder, &custom->list, custom->name);
		list_begin(&custom->list);
		custom->name = name;
	}
	for (int i = 0; i < Min(n, n_scores); i++)
	{
		MrKey key = mr_key_from_text(DatumGetTextPP(items[i]));

		list_add(builder, &custom->list, mr_ids_find(&builder->model->items.ids, &key), &key,
				 DatumGetFloat4(scores[i]));
	}
}

static void
build_baselines(Builder *builder, const char *seed)
{
	const MrSide *top = &builder->model->baseline;

	build_ordered(builder, &top->ids, top->factors, "top");
	build_random(builder, seed);
	for_each_block(builder,
				   "SELECT name, items, scores FROM millrace.custom_baseline_block WHERE model = $1 ORDER BY "
				   "name, block",
				   take_baseline);
	if (((CustomBuilder *) builder)->name)
		list_end(builder, &((CustomBuilder *) builder)->list, ((CustomBuilder *) builder)->name);
}

/* What the lists are in this snapshot, and what the random order depends on. */
typedef struct Identity
{
	pg_uuid_t uuid;
	bool is_active; /* they are for the version that is open */
	char *seed;
} Identity;

/* In the current memory context. */
static Identity
read_identity(const MrModel *model)
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[2] = {TEXTOID, INT4OID};
	Datum values[2] = {CStringGetTextDatum(model->name), Int32GetDatum(model->version)};
	Identity identity;
	MrGuard guard;
	HeapTuple row;
	TupleDesc desc;
	bool null;

	mr_enter_catalog(&guard, "model");
	mr_exec_args("SELECT m.lists, m.active IS NOT DISTINCT FROM v.version, v.version || ':' || "
				 "coalesce(v.parameters->>'seed', '') FROM "
				 "millrace.model AS m JOIN millrace.model_version AS v ON v.model = m.name "
				 "AND v.version = $2 WHERE m.name = $1",
				 SPI_OK_SELECT, true, 2, types, values, NULL);
	mr_leave(&guard);
	if (SPI_processed == 0)
		mr_model_unknown(model->name);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	identity.uuid = *DatumGetUUIDP(SPI_getbinval(row, desc, 1, &null));
	identity.is_active = DatumGetBool(SPI_getbinval(row, desc, 2, &null));
	identity.seed = MemoryContextStrdup(context, SPI_getvalue(row, desc, 3));
	SPI_freetuptable(SPI_tuptable);
	return identity;
}

typedef struct Making
{
	const MrModel *model;
	const char *seed;
} Making;

/* Of mr_cache_open: the image is one section. */
static void
build_image(void *arg, MrSection *sections)
{
	const Making *making = arg;
	MemoryContext work =
		AllocSetContextCreate(CurrentMemoryContext, "millrace lists", ALLOCSET_DEFAULT_SIZES);
	MemoryContext before = MemoryContextSwitchTo(work);
	CustomBuilder custom = {.builder = {.model = making->model}};
	Builder *builder = &custom.builder;
	MrGuard guard;
	void *image;

	(void) put(&builder->writer, NULL, sizeof(Header));
	builder->header.version = making->model->uuid;
	builder->header.n_items = making->model->items.ids.n;
	mr_enter_catalog(&guard, "item_features");
	build_features(builder);
	build_baselines(builder, making->seed);
	mr_leave(&guard);
	builder->header.baselines =
		put(&builder->writer, builder->baselines, builder->header.n_baselines * sizeof(MrListsBaseline));
	memcpy(builder->writer.data, &builder->header, sizeof(Header));
	MemoryContextSwitchTo(before);
	image = mr_cache_alloc(builder->writer.n_bytes);
	memcpy(image, builder->writer.data, builder->writer.n_bytes);
	sections[0] = (MrSection){image, builder->writer.n_bytes};
	MemoryContextDelete(work);
}

/* ---- what a backend keeps ---- */

static MrListsImage *open_images[MAX_OPEN];
static uint64 use_clock = 0;

static bool
same_uuid(const pg_uuid_t *a, const pg_uuid_t *b)
{
	return memcmp(a, b, sizeof(pg_uuid_t)) == 0;
}

static void
forget(int slot)
{
	MrListsImage *image = open_images[slot];

	open_images[slot] = NULL;
	MemoryContextDelete(image->context);
}

/* In the place of the model's older lists, a free slot, or that of the image that is the longest unused; false: all are pinned. */
static bool
keep(MrListsImage *image)
{
	int slot = -1;

	for (int i = 0; i < MAX_OPEN; i++)
		if (open_images[i] && open_images[i]->n_pins == 0 && strcmp(open_images[i]->model, image->model) == 0)
			forget(i);
	for (int i = 0; i < MAX_OPEN; i++)
	{
		if (open_images[i] == NULL)
		{
			slot = i;
			break;
		}
		if (open_images[i]->n_pins == 0 &&
			(slot < 0 || open_images[i]->last_use < open_images[slot]->last_use))
			slot = i;
	}
	if (slot < 0)
		return false;
	if (open_images[slot])
		forget(slot);
	open_images[slot] = image;
	MemoryContextSetParent(image->context, CacheMemoryContext);
	return true;
}

/* In the current memory context. */
static MrListsImage *
make_image(const MrModel *model)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace lists", ALLOCSET_SMALL_SIZES);
	MrListsImage *image = MemoryContextAllocZero(context, sizeof(MrListsImage));
	Identity identity = read_identity(model);
	Making making = {model, identity.seed};

	image->context = context;
	image->model = MemoryContextStrdup(context, model->name);
	image->uuid = identity.uuid;
	if (identity.is_active)
	{
		image->cache = mr_cache_open(context, &identity.uuid, MR_CACHE_LISTS,
									 psprintf("what serves the lists of model \"%s\"", model->name),
									 build_image, &making);
		image->header = image->cache->sections[0].data;
	}
	if (!identity.is_active || !same_uuid(&image->header->version, &model->uuid))
	{
		/* The model was opened by another snapshot: lists that match it, for this once. */
		MemoryContext before = MemoryContextSwitchTo(context);
		MrSection section;

		build_image(&making, &section);
		MemoryContextSwitchTo(before);
		image->cache = NULL;
		image->header = section.data;
	}
	image->base = (const char *) image->header;
	image->lists.category =
		image->header->has_features ? (const int32 *) (image->base + image->header->category) : NULL;
	image->lists.n_categories = image->header->n_categories;
	image->lists.image = image;
	return image;
}

static MrListsImage *
open_image(const MrModel *model)
{
	MemoryContext context = CurrentMemoryContext;
	MrListsImage *image = NULL;

	for (int i = 0; i < MAX_OPEN && image == NULL; i++)
		if (open_images[i] && same_uuid(&open_images[i]->uuid, &model->lists_uuid) &&
			same_uuid(&open_images[i]->header->version, &model->uuid))
			image = open_images[i];
	if (image)
		mr_cache_touch(image->cache);
	else
	{
		image = make_image(model);
		MemoryContextSwitchTo(context); /* which SPI has left */
		if (image->cache == NULL || !same_uuid(&image->uuid, &model->lists_uuid) || !keep(image))
			return image;
	}
	image->last_use = ++use_clock;
	mr_pin(&image->n_pins);
	return image;
}

const MrLists *
mr_lists_open(MrModel *model)
{
	return &open_image(model)->lists;
}

int32
mr_lists_category(const MrLists *lists, const MrModel *model, const MrKey *item)
{
	char space[MR_KEY_SPACE];
	int64 row;
	MrKey key;

	if (lists->category == NULL)
		return -1;
	row = mr_ids_find(&model->items.ids, item);
	if (row >= 0)
		return lists->category[row];
	(void) mr_key_convert(item, true, &key, space);
	return category_of_other(lists->image->header, lists->image->base, &key);
}

text *
mr_lists_category_name(const MrLists *lists, int32 category)
{
	const char *base = lists->image->base;
	const Header *header = lists->image->header;
	MrKey name = text_at(base + header->names, (const int64 *) (base + header->name_end), category);

	return cstring_to_text_with_len(name.bytes, name.n_bytes);
}

/* The baseline of that name as it stands in the image, or NULL. */
static const MrListsBaseline *
find_baseline(const MrListsImage *image, const char *name)
{
	const MrListsBaseline *baselines = (const MrListsBaseline *) (image->base + image->header->baselines);

	for (int i = 0; i < image->header->n_baselines; i++)
		if (strcmp(image->base + baselines[i].name, name) == 0)
			return &baselines[i];
	return NULL;
}

/* The first n of different categories. */
static void
take_first(MrBaseline *baseline, int64 n)
{
	const MrListsBaseline *entry = baseline->entry;
	int32 *row;
	float *score;
	int32 *category;

	baseline->n = Min(n, entry->first ? entry->n_first : entry->n);
	if (entry->first == 0)
		return;
	baseline->position = (const int32 *) (baseline->image->base + entry->first);
	row = MemoryContextAllocHuge(CurrentMemoryContext, baseline->n * sizeof(int32) + 1);
	score = MemoryContextAllocHuge(CurrentMemoryContext, baseline->n * sizeof(float) + 1);
	category = MemoryContextAllocHuge(CurrentMemoryContext, baseline->n * sizeof(int32) + 1);
	for (int64 i = 0; i < baseline->n; i++)
	{
		int32 at = baseline->position[i];

		row[i] = baseline->row[at];
		score[i] = baseline->score[at];
		category[i] = baseline->category[at];
	}
	baseline->row = row;
	baseline->score = score;
	baseline->category = category;
}

const MrBaseline *
mr_baseline_open(MrModel *model, const char *name)
{
	MrBaseline *baseline = palloc0(sizeof(MrBaseline));
	const MrListsImage *image;
	int64 n;
	char kind = mr_baseline_built_in(name, &n);
	const MrListsBaseline *entry;

	if (n < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("baseline \"%s\" of model \"%s\" would be empty", name, model->name)));
	image = open_image(model);
	entry = find_baseline(image, kind == 't' ? "top" : kind == 'r' ? "random" : name);
	if (entry == NULL)
		mr_baseline_unknown(model->name, name);
	baseline->n = entry->n;
	baseline->row = (const int32 *) (image->base + entry->row);
	baseline->score = (const float *) (image->base + entry->score);
	baseline->category = entry->category ? (const int32 *) (image->base + entry->category) : NULL;
	baseline->image = image;
	baseline->entry = entry;
	if (n > 0)
		take_first(baseline, n);
	return baseline;
}

MrKey
mr_baseline_key(const MrModel *model, const MrBaseline *baseline, int64 i)
{
	const MrListsBaseline *entry = baseline->entry;
	const char *base = baseline->image->base;
	char space[MR_KEY_SPACE];
	MrKey key;
	MrKey number;

	if (baseline->row[i] >= 0)
		return mr_ids_key(&model->items.ids, baseline->row[i]);
	key = text_at(base + entry->items, (const int64 *) (base + entry->item_end),
				  baseline->position ? baseline->position[i] : i);
	if (!model->items.ids.text && mr_key_convert(&key, false, &number, space))
		return number;
	return key;
}

/* ---- as rows ---- */

static void
put_baseline(ReturnSetInfo *rsinfo, const MrModel *model, const MrLists *lists, const MrBaseline *baseline)
{
	MemoryContext row_context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace row", ALLOCSET_DEFAULT_SIZES);

	for (int64 i = 0; i < baseline->n; i++)
	{
		MemoryContext before = MemoryContextSwitchTo(row_context);
		MrKey key = mr_baseline_key(model, baseline, i);
		int32 category = baseline->category ? baseline->category[i] : -1;
		Datum values[5] = {Int32GetDatum((int32) (i + 1)), Int64GetDatum(key.value),
						   CStringGetTextDatum(mr_key_cstring(&key)), Float4GetDatum(baseline->score[i]),
						   category < 0 ? 0 : PointerGetDatum(mr_lists_category_name(lists, category))};
		bool nulls[5] = {false, key.text, false, false, category < 0};

		CHECK_FOR_INTERRUPTS();
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		MemoryContextSwitchTo(before);
		MemoryContextReset(row_context);
	}
	MemoryContextDelete(row_context);
}

Datum
mr_baseline(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	char *baseline = mr_name_arg(fcinfo, 1, "name");
	MrModel *model;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	model = mr_model_open(name);
	put_baseline((ReturnSetInfo *) fcinfo->resultinfo, model, mr_lists_open(model),
				 mr_baseline_open(model, baseline));
	SPI_finish();
	PG_RETURN_NULL();
}
