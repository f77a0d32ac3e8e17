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

static void mr_history_read(MrModel *model, const MrKey *users, int64 n_users, MrHistory *histories);

static bool
mr_history_is_new(const MrModel *model, int64 user_row, const MrHistory *history)
{
	return false;
}
