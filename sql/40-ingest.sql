/*
 * What the ingester keeps in the database: positions, and the messages it could not store.  Both are written in the
 * transaction that writes the rows, so what they say and what the tables hold never differ.
 */
CREATE TABLE millrace.ingest_offsets (
	source text NOT NULL,
	topic text NOT NULL,
	partition int NOT NULL,
	next_offset bigint NOT NULL CHECK (next_offset >= 0),
	updated timestamptz NOT NULL DEFAULT now(),
	file_id text,
	file_size bigint,
	file_modified timestamptz,
	file_fingerprint text,
	file_defect text,
	PRIMARY KEY (source, topic, partition)
);
SELECT pg_catalog.pg_extension_config_dump('millrace.ingest_offsets', '');
COMMENT ON TABLE millrace.ingest_offsets IS 'How far the ingester has read: one row per file or Kafka partition, moved by compare-and-set in the transaction of the rows';
COMMENT ON COLUMN millrace.ingest_offsets.source IS 'Name of the ingest stream: [source] name in its configuration';
COMMENT ON COLUMN millrace.ingest_offsets.topic IS 'Kafka topic, or name of the file; "-" for standard input';
COMMENT ON COLUMN millrace.ingest_offsets.partition IS 'Kafka partition; 0 for a file';
COMMENT ON COLUMN millrace.ingest_offsets.next_offset IS 'Offset of the next message, or byte in the file, to be read; everything before it is in the table or in millrace.dead_letters';
COMMENT ON COLUMN millrace.ingest_offsets.updated IS 'Start of the transaction that moved it last';
COMMENT ON COLUMN millrace.ingest_offsets.file_id IS 'Inode of the file and its time of birth, by which it is known again under another name; NULL for Kafka and standard input, as the columns behind this one';
COMMENT ON COLUMN millrace.ingest_offsets.file_size IS 'Bytes of the file on disk when its end was reached; NULL: it has not been';
COMMENT ON COLUMN millrace.ingest_offsets.file_modified IS 'When the file had been changed last, as it was opened for the last time';
COMMENT ON COLUMN millrace.ingest_offsets.file_fingerprint IS 'next_offset, CRC-32 of the first KiB up to it, and of the last KiB before it: another file of the same name is told by it; counts only with this next_offset; for Kafka next_offset, then time and size of the message before it, by which a topic that was made anew is known';
COMMENT ON COLUMN millrace.ingest_offsets.file_defect IS 'Why the file cannot be read from next_offset on; NULL: it can';

CREATE SEQUENCE millrace.dead_letters_id_seq;
CREATE TABLE millrace.dead_letters (
	id bigint PRIMARY KEY DEFAULT nextval('millrace.dead_letters_id_seq'),
	source text NOT NULL,
	topic text NOT NULL,
	partition int NOT NULL,
	"offset" bigint NOT NULL,
	key bytea,
	payload bytea,
	headers jsonb,
	message_time timestamptz,
	csv_header text,
	stage text NOT NULL,
	sqlstate text,
	reason text NOT NULL,
	created timestamptz NOT NULL DEFAULT now()
);
ALTER SEQUENCE millrace.dead_letters_id_seq OWNED BY millrace.dead_letters.id;
SELECT pg_catalog.pg_extension_config_dump('millrace.dead_letters', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.dead_letters_id_seq', '');
COMMENT ON SEQUENCE millrace.dead_letters_id_seq IS 'Numbers millrace.dead_letters';
COMMENT ON TABLE millrace.dead_letters IS 'Messages that could not be decoded or that the table refused, with their bytes unchanged';
COMMENT ON COLUMN millrace.dead_letters.id IS 'Number, in order of arrival within one ingester';
COMMENT ON COLUMN millrace.dead_letters.source IS 'Name of the ingest stream, as in millrace.ingest_offsets';
COMMENT ON COLUMN millrace.dead_letters.topic IS 'Kafka topic, or name of the file';
COMMENT ON COLUMN millrace.dead_letters.partition IS 'Kafka partition; 0 for a file';
COMMENT ON COLUMN millrace.dead_letters."offset" IS 'Kafka offset of the message, or byte in the file at which the record starts';
COMMENT ON COLUMN millrace.dead_letters.key IS 'Key of the Kafka message; NULL where it had none, and for files';
COMMENT ON COLUMN millrace.dead_letters.payload IS 'The message or line as it came, without the line''s end';
COMMENT ON COLUMN millrace.dead_letters.headers IS 'Headers of the Kafka message: name and value, an array of values where a name is repeated; NULL where it had none, and for files';
COMMENT ON COLUMN millrace.dead_letters.message_time IS 'Timestamp of the Kafka message; NULL for files';
COMMENT ON COLUMN millrace.dead_letters.csv_header IS 'Record with the names of the fields, where a CSV file has one';
COMMENT ON COLUMN millrace.dead_letters.stage IS 'Where it failed: read (a piece of a record longer than source.max_record, or what a damaged file ends with), decode (not CSV or JSON), partition (event time out of range), store (refused by the server)';
COMMENT ON COLUMN millrace.dead_letters.sqlstate IS 'SQLSTATE of the server''s error; NULL where the ingester found the fault';
COMMENT ON COLUMN millrace.dead_letters.reason IS 'What is wrong, as the ingester or the server says it';
COMMENT ON COLUMN millrace.dead_letters.created IS 'Start of the transaction that wrote it';

/* Not dumped: figures of processes that run here and now. */
CREATE TABLE millrace.ingest_metrics (
	source text NOT NULL,
	instance text NOT NULL,
	metric text NOT NULL,
	labels jsonb NOT NULL DEFAULT '{}',
	value float8 NOT NULL,
	updated timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (source, instance, metric, labels)
) WITH (fillfactor = 50);
COMMENT ON TABLE millrace.ingest_metrics IS 'What each ingester serves under /metrics, written every metrics.interval; rows of processes that have ended go after a day';
COMMENT ON COLUMN millrace.ingest_metrics.source IS 'Name of the ingest stream, as in millrace.ingest_offsets';
COMMENT ON COLUMN millrace.ingest_metrics.instance IS 'Host and process id of the ingester';
COMMENT ON COLUMN millrace.ingest_metrics.metric IS 'Name of the figure, without the prefix millrace_; those that end in _total count since the process started';
COMMENT ON COLUMN millrace.ingest_metrics.labels IS 'topic and partition of a lag, le of a bucket of batch_seconds; otherwise empty';
COMMENT ON COLUMN millrace.ingest_metrics.value IS 'Value of the figure';
COMMENT ON COLUMN millrace.ingest_metrics.updated IS 'When it was written';

/* Positions and metrics may be seen by all; payloads hold user data and are for those whom the extension's creator names. */
GRANT SELECT ON millrace.ingest_offsets, millrace.ingest_metrics TO PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON millrace.ingest_offsets, millrace.dead_letters, millrace.ingest_metrics TO @extowner@ WITH GRANT OPTION;
GRANT USAGE, SELECT ON SEQUENCE millrace.dead_letters_id_seq TO @extowner@ WITH GRANT OPTION;
