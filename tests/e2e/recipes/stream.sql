-- The same text as a stream: psql -v query="$(cat query.sql)" -f stream.sql
-- The view NAME holds its result, NAME_query is the query itself over the table; millrace.verify(NAME) compares them.
SELECT millrace.create_continuous_aggregate('six_hours', :'query', watermark => '1 hour');
