/*
 * Categories of a model's items, and baselines: the queries that give them, and what these gave when they last ran,
 * in blocks of a thousand.
 */
CREATE TABLE millrace.item_features (
	model text PRIMARY KEY,
	query text NOT NULL,
	settings text[] NOT NULL,
	items bigint NOT NULL,
	categories int NOT NULL,
	refreshed timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE millrace.item_features IS 'Queries of set_item_features';
COMMENT ON COLUMN millrace.item_features.model IS 'Name of the model';
COMMENT ON COLUMN millrace.item_features.query IS 'Item and category as a query; run as the model''s owner, with these settings';
COMMENT ON COLUMN millrace.item_features.settings IS 'Settings that give the query its meaning, as name=value';
COMMENT ON COLUMN millrace.item_features.items IS 'Items that it gave a category';
COMMENT ON COLUMN millrace.item_features.categories IS 'Distinct categories';
COMMENT ON COLUMN millrace.item_features.refreshed IS 'When it last ran';

CREATE TABLE millrace.item_features_block (
	model text NOT NULL,
	block int NOT NULL CHECK (block >= 0),
	items text[] NOT NULL,
	categories text[] NOT NULL,
	PRIMARY KEY (model, block)
);
COMMENT ON TABLE millrace.item_features_block IS 'What the query of set_item_features gave';
COMMENT ON COLUMN millrace.item_features_block.model IS 'Name of the model';
COMMENT ON COLUMN millrace.item_features_block.block IS 'Number of the block, from 0';
COMMENT ON COLUMN millrace.item_features_block.items IS 'Ids as text, in the bytewise order of categories, then items, across blocks';
COMMENT ON COLUMN millrace.item_features_block.categories IS 'The category of each';

CREATE TABLE millrace.custom_baseline (
	model text NOT NULL,
	name text NOT NULL CHECK (name <> ''),
	query text NOT NULL,
	settings text[] NOT NULL,
	items bigint NOT NULL,
	refreshed timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (model, name)
);
COMMENT ON TABLE millrace.custom_baseline IS 'Queries of set_baseline';
COMMENT ON COLUMN millrace.custom_baseline.model IS 'Name of the model';
COMMENT ON COLUMN millrace.custom_baseline.name IS 'Name of the baseline';
COMMENT ON COLUMN millrace.custom_baseline.query IS 'Item and score, or item, as a query; run as the model''s owner, with these settings';
COMMENT ON COLUMN millrace.custom_baseline.settings IS 'Settings that give the query its meaning, as name=value';
COMMENT ON COLUMN millrace.custom_baseline.items IS 'How many items it gave';
COMMENT ON COLUMN millrace.custom_baseline.refreshed IS 'When it last ran';

CREATE TABLE millrace.custom_baseline_block (
	model text NOT NULL,
	name text NOT NULL,
	block int NOT NULL CHECK (block >= 0),
	items text[] NOT NULL,
	scores real[] NOT NULL,
	PRIMARY KEY (model, name, block)
);
COMMENT ON TABLE millrace.custom_baseline_block IS 'What the queries of set_baseline gave';
COMMENT ON COLUMN millrace.custom_baseline_block.model IS 'Name of the model';
COMMENT ON COLUMN millrace.custom_baseline_block.name IS 'Name of the baseline';
COMMENT ON COLUMN millrace.custom_baseline_block.block IS 'Number of the block, from 0';
COMMENT ON COLUMN millrace.custom_baseline_block.items IS 'Ids as text, best first, across blocks';
COMMENT ON COLUMN millrace.custom_baseline_block.scores IS 'The score of each';

SELECT pg_catalog.pg_extension_config_dump('millrace.item_features', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.item_features_block', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.custom_baseline', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.custom_baseline_block', '');

GRANT SELECT ON millrace.item_features, millrace.item_features_block, millrace.custom_baseline, millrace.custom_baseline_block TO PUBLIC;

CREATE FUNCTION millrace.set_item_features(model text, query text, OUT items bigint, OUT categories int)
	RETURNS record LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_set_item_features';
COMMENT ON FUNCTION millrace.set_item_features(text, text) IS
'Give a model''s items categories, in the place of those they have; returns how many items have one, and how many there are.
query: a table, a view or a query whose first columns are item (bigint, integer, smallint or text) and category (any type, kept as text); further columns are ignored. Each item at most once; one without a row, or whose category is NULL, has no category. Items need not be known to the model. NULL: no categories any more.
It is stored, runs now as the model''s owner, and again when the model is retrained or by refresh_lists; so it must not read temporary tables.';

CREATE FUNCTION millrace.set_baseline(model text, query text, name text = 'custom')
	RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_set_baseline';
COMMENT ON FUNCTION millrace.set_baseline(text, text, text) IS
'Give a model a list for everybody, in the place of one of that name; returns how many items it has.
query: a table, a view or a query whose first columns are item (bigint, integer, smallint or text) and, if there is a second, score (a number): greatest first, equal ones in the order of ids. Without a score the rows come in the query''s own order, and the score is 1 / rank. Each item at most once; items need not be known to the model. NULL: the model has no list of that name any more.
It is stored, runs now as the model''s owner, and again when the model is retrained or by refresh_lists; so it must not read temporary tables. The names top and random, also with a number (top_5), are taken.';

CREATE FUNCTION millrace.refresh_lists(model text)
	RETURNS int LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_refresh_lists';
COMMENT ON FUNCTION millrace.refresh_lists(text) IS 'Run the queries of set_item_features and set_baseline of a model again, as its owner; returns how many there are. A baseline whose query gives no row now stays as it is, with a warning';

CREATE FUNCTION millrace.baseline(model text, name text = 'top_5',
	OUT rank int, OUT item_id bigint, OUT item text, OUT score real, OUT category text)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 100 AS 'MODULE_PATHNAME', 'mr_baseline';
COMMENT ON FUNCTION millrace.baseline(text, text) IS
'A list for everybody that a model has, best first. top: its items by the number of users that had them when it was trained, the score (no rows if it was imported without ratings). random: all items, in an order that changes with each version, but is the same whenever the version is asked; the score is a random number between 0 and 1. top_5, random_5, or any other number: the first five of these of five different categories; fewer if there are not so many. An item without a category counts as one of its own. Any other name: what set_baseline gave.
item_id is NULL where item ids are text; item is always set.';

REVOKE ALL ON FUNCTION millrace.set_item_features(text, text), millrace.set_baseline(text, text, text), millrace.refresh_lists(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.set_item_features(text, text), millrace.set_baseline(text, text, text), millrace.refresh_lists(text) TO @extowner@ WITH GRANT OPTION;
