/* For pgTAP files about streams. */
/* Columns of a view, without the one that tells whether a window is final. */
CREATE FUNCTION columns(rel text) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
	WHERE attrelid = quote_ident(rel)::regclass AND attnum > 0 AND attname <> 'final'
$$;

/* Rows in which a continuous aggregate and its query over the source differ. */
CREATE FUNCTION differences(name text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
	EXECUTE format('SELECT count(*) FROM ((SELECT %3$s FROM %1$I EXCEPT ALL TABLE %2$I) UNION ALL (TABLE %2$I EXCEPT ALL SELECT %3$s FROM %1$I)) d',
		name, name || '_query', columns(name)) INTO n;
	RETURN n;
END $$;

/* What create_continuous_aggregate answers to a query. */
CREATE FUNCTION refused(query text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM millrace.create_continuous_aggregate('refused', query);
	RETURN 'created';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
