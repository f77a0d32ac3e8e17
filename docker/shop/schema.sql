-- A shop's events, from the topic to the dashboard, in one database.  Run by its owner: psql -f schema.sql
CREATE EXTENSION IF NOT EXISTS millrace;

-- Everything, as it came.
CREATE TABLE operations_raw (
	id bigint NOT NULL,
	event_time timestamptz NOT NULL,
	event_type text NOT NULL,
	product_id bigint NOT NULL,
	category_id bigint,
	category_code text,
	brand text,
	price numeric(12, 2),
	user_id bigint NOT NULL,
	user_session text
) PARTITION BY RANGE (event_time);
SELECT millrace.create_source('operations_raw', 'event_time', '1 day', retention => '90 days');

-- For dashboards: no gaps.  Python's producers write NaN where something is missing.
CREATE TABLE operations (
	id bigint NOT NULL,
	event_time timestamptz NOT NULL,
	event_type text NOT NULL,
	brand text NOT NULL,
	price numeric(12, 2),
	department text NOT NULL,
	product text NOT NULL,
	revenue numeric(12, 2) NOT NULL
) PARTITION BY RANGE (event_time);
SELECT millrace.create_source('operations', 'event_time', '1 day', retention => '90 days');
SELECT millrace.create_pipe('clean_operations', 'operations_raw', $$
	INSERT INTO operations
	SELECT id, event_time, event_type, coalesce(nullif(brand, 'NaN'), 'other'), nullif(price, 'NaN'),
		coalesce(nullif(split_part(category_code, '.', 1), 'NaN'), 'other'), coalesce(nullif(split_part(category_code, '.', -1), 'NaN'), 'other'),
		CASE WHEN event_type = 'purchase' THEN coalesce(nullif(price, 'NaN'), 0) ELSE 0 END
	FROM new_rows$$);

SELECT millrace.create_continuous_aggregate('operations_per_minute', $$
	SELECT event_type, department, brand, millrace.tumble(event_time, '1 minute') AS window_start, count(*) AS n, sum(revenue) AS revenue
	FROM operations GROUP BY 1, 2, 3, 4$$, watermark => '2 minutes', retain => '7 days');
SELECT millrace.create_continuous_aggregate('operations_per_hour', $$
	SELECT event_type, department, brand, millrace.tumble(window_start, '1 hour') AS window_start, sum(n) AS n, sum(revenue) AS revenue
	FROM operations_per_minute GROUP BY 1, 2, 3, 4$$);
