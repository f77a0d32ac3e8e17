/* Stand-ins for pieces that are not merged yet; goes away. */
typedef struct MrLists
{
	const int32 *category;
	int32 n_categories;
} MrLists;

typedef struct MrBaseline
{
	int64 n;
	const int32 *row;
	const float *score;
	const int32 *category;
} MrBaseline;

static const MrLists *
mr_lists_open(MrModel *model)
{
	return palloc0(sizeof(MrLists));
}

static const MrBaseline *
mr_baseline_open(MrModel *model, const char *name)
{
	MrBaseline *baseline = palloc0(sizeof(MrBaseline));
	int64 n = model->baseline.ids.n;
	MrcTop *top = palloc(n * sizeof(MrcTop) + 1);
	int64 n_top;
	static const float one = 1;
	int32 *row = palloc(n * sizeof(int32) + 1);
	float *score = palloc(n * sizeof(float) + 1);

	if (strcmp(name, "top") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("model \"%s\" has no baseline \"%s\"", model->name, name)));
	if (n == 0)
		return baseline;
	mrc_topk(&one, 1, model->baseline.factors, n, 1, NULL, NULL, n, top, &n_top,
			 palloc(mrc_topk_scratch_bytes(1, 1)));
	for (int64 i = 0; i < n; i++)
	{
		MrKey key = mr_ids_key(&model->baseline.ids, top[i].row);

		row[i] = (int32) mr_ids_find(&model->items.ids, &key);
		score[i] = top[i].score;
	}
	baseline->n = n;
	baseline->row = row;
	baseline->score = score;
	return baseline;
}

static MrKey
mr_baseline_key(const MrModel *model, const MrBaseline *baseline, int64 i)
{
	return mr_ids_key(&model->items.ids, baseline->row[i]);
}

typedef struct MrcIndex
{
	const float *items;
	int64_t n_items;
	int rank;
} MrcIndex;

typedef struct MrcSearch
{
	const float *user;
	int64_t k;
	const int32_t *skip;
	int64_t n_skip;
	const int32_t *boosted;
	const float *boost;
	int64_t n_boosted;
	const int32_t *only;
	int64_t n_only;
	const int32_t *category;
	int max_per_category;
	int32_t used_category;
	int n_used;
	MrcTop *top;
	int64_t n_top;
} MrcSearch;

static int
compare_tops(const void *a, const void *b)
{
	return mrc_top_before(*(const MrcTop *) a, *(const MrcTop *) b) ? -1 : 1;
}

static bool
in_rows(const int32 *rows, int64 n, int32 row)
{
	return n > 0 && bsearch(&row, rows, n, sizeof(int32), mr_compare_rows) != NULL;
}

static void
mrc_search(const MrcIndex *index, MrcSearch *search, void *scratch)
{
	float *scores = malloc(index->n_items * sizeof(float) + 1);
	MrcTop *all = malloc(index->n_items * sizeof(MrcTop) + 1);
	int64 n = 0;
	int *used = calloc(index->n_items + 1, sizeof(int));

	mrc_dots(search->user, index->items, index->n_items, index->rank, scores);
	for (int64 i = 0; i < search->n_boosted; i++)
		scores[search->boosted[i]] += search->boost[i];
	for (int64 i = 0; i < index->n_items; i++)
		if (!in_rows(search->skip, search->n_skip, i) &&
			(search->only == NULL || in_rows(search->only, search->n_only, i)))
			all[n++] = (MrcTop){scores[i], (int32) i};
	qsort(all, n, sizeof(MrcTop), compare_tops);
	search->n_top = 0;
	if (search->used_category >= 0)
		used[search->used_category] = search->n_used;
	for (int64 i = 0; i < n && search->n_top < search->k; i++)
	{
		int32 category = search->category ? search->category[all[i].row] : -1;

		if (category >= 0 && used[category]++ >= search->max_per_category)
			continue;
		search->top[search->n_top++] = all[i];
	}
	free(scores);
	free(all);
	free(used);
}

static void mr_history_read(MrModel *model, const MrKey *users, int64 n_users, MrHistory *histories);

static bool
mr_history_is_new(const MrModel *model, int64 user_row, const MrHistory *history)
{
	return false;
}
