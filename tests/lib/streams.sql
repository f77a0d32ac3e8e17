/* For pgTAP files about streams. */
/* Rows in which a continuous aggregate and its query over the source differ. */
CREATE FUNCTION differences(name text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
	EXECUTE format('SELECT count(*) FROM ((TABLE %1$I EXCEPT ALL TABLE %2$I) UNION ALL (TABLE %2$I EXCEPT ALL TABLE %1$I)) d', name, name || '_query') INTO n;
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
