/* What serving needs of models, once a machine: files beside the database's own, made from the tables. */
CREATE FUNCTION millrace.warm(model text = NULL)
	RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_warm';
COMMENT ON FUNCTION millrace.warm(text) IS
'Make ready what serving needs of a model''s active version, so that the first recommendation has nothing to wait for; NULL: of all models, where one that fails is a warning. After an upgrade, a restore or a promotion, on a new replica, or when the machine has started: whatever is there is read once and checked.
Returns the bytes that all sessions share now; 0 for a model of another kind than als, which needs nothing of the sort, and for one that cannot be shared (the directory of the database cannot be written, its disk is full, or millrace.cache_size is too small), which each session then keeps in its own memory. Works on a replica too, for that machine.';

CREATE FUNCTION millrace._sweep_cache()
	RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_sweep';
COMMENT ON FUNCTION millrace._sweep_cache() IS 'Internal: a step of millrace.maintain';

REVOKE EXECUTE ON FUNCTION millrace._sweep_cache() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._sweep_cache() TO @extowner@ WITH GRANT OPTION;
