/*
 * The session with the database: every SQL statement of the program but those of a batch's transaction (store.c), and trying
 * again.
 */
#include "sink.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_MOVED 10
#define TIMES_A_QUERY 10000
#define FIRST_PAUSE_MS 100
#define LONGEST_PAUSE_MS 5000

/* ---- connection ---- */

static void
on_notice(void *context, const PGresult *result)
{
	(void) context;
	log_line(LOG_DEBUG, "server: %s", PQresultErrorMessage(result));
}

static void
set_cancel(Sink *sink, PGcancel *cancel)
{
	pthread_mutex_lock(&sink->cancel_lock);
	PQfreeCancel(sink->cancel);
	sink->cancel = cancel;
	pthread_mutex_unlock(&sink->cancel_lock);
}

void
sink_cancel(Sink *sink)
{
	char error[256];

	pthread_mutex_lock(&sink->cancel_lock);
	if (sink->cancel != NULL && !PQcancel(sink->cancel, error, sizeof error))
		log_line(LOG_DEBUG, "cancel: %s", error);
	pthread_mutex_unlock(&sink->cancel_lock);
}

static void
sink_disconnect(Sink *sink)
{
	set_cancel(sink, NULL);
	PQfinish(sink->connection);
	sink->connection = NULL;
}

/* Where nobody has set them, neither here nor by the environment: a dead peer is noticed, and a standby is passed over. */
static const char *const our_connection[][3] = {
	{"fallback_application_name", "PGAPPNAME", "millrace"},
	{"connect_timeout", "PGCONNECT_TIMEOUT", "10"},
	{"target_session_attrs", "PGTARGETSESSIONATTRS", "read-write"},
	{"keepalives_idle", "", "30"},
	{"keepalives_interval", "", "10"},
	{"keepalives_count", "", "3"},
	/* Also runs while the server waits for a lock and takes no bytes of a COPY. */
	{"tcp_user_timeout", "", "120000"},
};
#define N_OUR_CONNECTION (sizeof our_connection / sizeof our_connection[0])

/*
 * Settings of the session that nobody has set: the server lets go of what an ingester holds that is gone, or that was
 * stopped in a transaction.
 */
static const char our_session[] =
	"SELECT pg_catalog.set_config(s.name, v.value, false) FROM (VALUES ('tcp_keepalives_idle', '30'),"
	" ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3'),"
	" ('client_connection_check_interval', '10s'), ('idle_in_transaction_session_timeout', '1min'))"
	" v(name, value) JOIN pg_catalog.pg_settings s USING (name) WHERE s.source = 'default'";

/*
 * True when connected and set up, but perhaps for the time zone; otherwise the reason is logged and the connection
 * closed.
 */
static bool
sink_connect(Sink *sink, LogLevel level, bool *is_zone_wrong)
{
	/* What stands before dbname can be overridden by the connection string, what stands behind it cannot. */
	const char *keys[N_OUR_CONNECTION + 3], *values[N_OUR_CONNECTION + 3];
	int n_keys = 0;
	const char *zone[] = {sink->config->timezone};
	PGresult *result;

	for (size_t i = 0; i < N_OUR_CONNECTION; i++)
		if (getenv(our_connection[i][1]) == NULL)
		{
			keys[n_keys] = our_connection[i][0];
			values[n_keys++] = our_connection[i][2];
		}
	keys[n_keys] = "dbname";
	values[n_keys++] = sink->config->connection;
	keys[n_keys] = "client_encoding";
	values[n_keys++] = "UTF8";
	keys[n_keys] = values[n_keys] = NULL;
	sink_disconnect(sink);
	sink->connection = PQconnectdbParams(keys, values, 1);
	if (sink->connection == NULL || PQstatus(sink->connection) != CONNECTION_OK)
	{
		log_line(level, "cannot connect to the database: %s",
				 sink->connection ? PQerrorMessage(sink->connection) : "out of memory");
		goto failed;
	}
	PQsetNoticeReceiver(sink->connection, on_notice, NULL);
	*is_zone_wrong = false;
	result = PQexecParams(sink->connection,
						  "SELECT pid, backend_start, pg_catalog.set_config('TimeZone', $1, false)"
						  " FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())",
						  1, NULL, zone, NULL, NULL, 0);
	bool is_set = PQresultStatus(result) == PGRES_TUPLES_OK;
	for (int i = 0; i < 2 && is_set && PQntuples(result) == 1; i++)
	{
		free(sink->session[i]);
		sink->session[i] = mem_string(PQgetvalue(result, 0, i));
	}
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	*is_zone_wrong = sqlstate != NULL && strcmp(sqlstate, "22023") == 0;
	PQclear(result);
	if (is_set || *is_zone_wrong)
	{
		PQclear(PQexec(sink->connection, our_session));
		/* What comes from a pipe, or is removed once it is stored, cannot be read again after a crash of the server. */
		if (sink->config->type == SOURCE_STDIN || sink->config->clean_source != CLEAN_OFF)
			PQclear(PQexec(sink->connection,
						   "SELECT pg_catalog.set_config('synchronous_commit', 'on', false)"
						   " WHERE pg_catalog.current_setting('synchronous_commit') = 'off'"));
		if (sink->config->n_shown > 0)
			PQclear(PQexec(sink->connection, "SET default_transaction_read_only = on"));
		set_cancel(sink, PQgetCancel(sink->connection));
		return true;
	}
	log_line(level, "cannot set up the session: %s", PQerrorMessage(sink->connection));
failed:
	sink_disconnect(sink);
	return false;
}

/* Most parse errors of libpq quote the string, and with it perhaps the password: then only the fact is told. */
static bool
connection_is_valid(Config *config)
{
	char *error = NULL;
	bool is_pair = strchr(config->connection, '=') != NULL || strstr(config->connection, "://") != NULL;
	PQconninfoOption *parsed = is_pair ? PQconninfoParse(config->connection, &error) : NULL;
	static const char harmless[] = "invalid connection option";
	bool is_told = error != NULL && strncmp(error, harmless, sizeof harmless - 1) == 0;

	if (is_pair && parsed == NULL)
		config_error_at(config, "target.connection", "\"connection\" is not a libpq connection string%s%s",
						is_told ? ": " : "", is_told ? error : "");
	bool is_valid = !is_pair || parsed != NULL;
	for (const PQconninfoOption *option = parsed; option != NULL && option->keyword != NULL; option++)
		if (strncmp(option->keyword, "host", 4) == 0 && option->val != NULL && strchr(option->val, '@'))
		{
			/* What stands behind the first one would be logged as the name of a host. */
			config_error_at(config, "target.connection",
							"a host of \"connection\" has an @: write %%40 for one in a password");
			is_valid = false;
		}
	PQconninfoFree(parsed);
	PQfreemem(error);
	return is_valid;
}

ExitCode
sink_open(Config *config, Sink **sink)
{
	bool is_zone_wrong = false;

	*sink = NULL;
	if (!connection_is_valid(config))
		return EXIT_USAGE;
	*sink = mem_alloc(sizeof(Sink));
	(*sink)->config = config;
	(*sink)->most_rows = INT_MAX;
	pthread_mutex_init(&(*sink)->cancel_lock, NULL);
	pthread_mutex_init(&(*sink)->offer_lock, NULL);
	if (!sink_connect(*sink, LOG_ERROR, &is_zone_wrong))
		return EXIT_CONNECTION;
	if (!is_zone_wrong)
		return EXIT_DONE;
	config_error_at(config, "target.timezone", "the server knows no time zone \"%s\"", config->timezone);
	return EXIT_USAGE;
}

bool
sink_is_open(const Sink *sink)
{
	return sink != NULL && sink->connection != NULL;
}

void
sink_close(Sink *sink)
{
	if (sink == NULL)
		return;
	sink_disconnect(sink);
	pthread_mutex_destroy(&sink->cancel_lock);
	buffer_free(&sink->send);
	buffer_free(&sink->sql);
	buffer_free(&sink->begin);
	free(sink->groups);
	free(sink->leaf_groups);
	free(sink->order);
	free(sink->reason);
	free(sink->context);
	free(sink->schema);
	free(sink->relation);
	free(sink->suspicion);
	buffer_free(&sink->witness.line);
	buffer_free(&sink->offered.line);
	pthread_mutex_destroy(&sink->offer_lock);
	free(sink->session[0]);
	free(sink->session[1]);
	free(sink);
}
/* ---- errors ---- */

/*
 * What a row may be the cause of.  While rows are being sent that includes limits of the program (an index entry too large,
 * JSON nested too deep), and whatever the input of a value fails with (regclass: no such table).
 */
static bool
is_data_error(const Sink *sink, const char *sqlstate, const char *context)
{
	if (strncmp(sqlstate, "22", 2) == 0 || strncmp(sqlstate, "23", 2) == 0 ||
		strcmp(sqlstate, "21000") == 0 || strcmp(sqlstate, "P0001") == 0)
		return true;
	if (sink->copying == NULL)
		return false;
	return strncmp(sqlstate, "54", 2) == 0 ||
		((strncmp(sqlstate, "42", 2) == 0 || strncmp(sqlstate, "3F", 2) == 0 ||
		  strncmp(sqlstate, "0A", 2) == 0) &&
		 context != NULL && copy_context_is_plain(context, sink->copying) &&
		 copy_context_has_column(context, sink->copying));
}

SinkStatus
sink_judge(Sink *sink, const PGresult *result, bool *is_data)
{
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	const char *primary = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	const char *detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);
	const char *context = PQresultErrorField(result, PG_DIAG_CONTEXT);
	bool is_lost = PQstatus(sink->connection) != CONNECTION_OK || sqlstate == NULL ||
		strncmp(sqlstate, "08", 2) == 0 || strncmp(sqlstate, "57P0", 4) == 0 ||
		strcmp(sqlstate, "25006") == 0; /* a standby now: another host is the primary */

	*is_data = !is_lost && is_data_error(sink, sqlstate, context);
	snprintf(sink->sqlstate, sizeof sink->sqlstate, "%s", sqlstate ? sqlstate : "");
	if (*is_data)
	{
		sink->is_unnamed_check =
			strcmp(sqlstate, "23514") == 0 && PQresultErrorField(result, PG_DIAG_CONSTRAINT_NAME) == NULL;
		free(sink->reason);
		free(sink->context);
		free(sink->schema);
		free(sink->relation);
		const char *schema = PQresultErrorField(result, PG_DIAG_SCHEMA_NAME);
		const char *relation = PQresultErrorField(result, PG_DIAG_TABLE_NAME);
		sink->schema = mem_string(schema ? schema : "");
		sink->relation = mem_string(relation ? relation : "");
		sink->reason = mem_printf("%s%s%s", primary ? primary : "", detail ? "; " : "", detail ? detail : "");
		sink->context = mem_string(context ? context : "");
		return SINK_RETRY;
	}
	log_line(
		LOG_WARNING, "%s%s%s%s%s%s%s", is_lost ? "connection to the database lost: " : "server refuses: ",
		primary ? primary : PQerrorMessage(sink->connection), sqlstate ? " (SQLSTATE " : "",
		sqlstate ? sqlstate : "", sqlstate ? ")" : "", context ? "; context: " : "", context ? context : "");
	return is_lost ? SINK_LOST : strcmp(sqlstate, "42501") == 0 ? SINK_DENIED : SINK_RETRY;
}

SinkStatus
sink_run_judged(Sink *sink, const char *sql, int n_params, const char *const *params, PGresult **result,
				bool *is_data)
{
	*is_data = false;
	if (sink->connection == NULL)
		return SINK_LOST;
	PGresult *answer = n_params ? PQexecParams(sink->connection, sql, n_params, NULL, params, NULL, NULL, 0)
								: PQexec(sink->connection, sql);
	ExecStatusType kind = PQresultStatus(answer);
	if (kind == PGRES_COMMAND_OK || kind == PGRES_TUPLES_OK)
	{
		if (result != NULL)
			*result = answer;
		else
			PQclear(answer);
		return SINK_OK;
	}
	SinkStatus status = sink_judge(sink, answer, is_data);
	PQclear(answer);
	if (result != NULL)
		*result = NULL;
	return status;
}

SinkStatus
sink_run(Sink *sink, const char *sql, int n_params, const char *const *params, PGresult **result)
{
	bool is_data;
	SinkStatus status = sink_run_judged(sink, sql, n_params, params, result, &is_data);

	if (is_data)
		log_line(LOG_WARNING, "server refuses: %s (SQLSTATE %s)", sink->reason, sink->sqlstate);
	return status;
}

bool
copy_context_is_plain(const char *context, const char *relation)
{
	size_t n_bytes = strlen(relation);

	return strncmp(context, "COPY ", 5) == 0 && strncmp(context + 5, relation, n_bytes) == 0 &&
		strncmp(context + 5 + n_bytes, ", ", 2) == 0;
}

/* The number of a line of context that is COPY's own, or NULL.  The word for "line" is translated, the order is not. */
static const char *
context_number(const char *line, const char *relation)
{
	if (!copy_context_is_plain(line, relation))
		return NULL;
	const char *number = line + 5 + strlen(relation) + 2;

	number += strcspn(number, "0123456789,:\n");
	return *number >= '1' && *number <= '9' ? number : NULL;
}

bool
copy_context_has_column(const char *context, const char *relation)
{
	const char *number = context_number(context, relation);

	return number != NULL && number[strspn(number, "0123456789")] == ',';
}

int64_t
copy_context_line(const char *context, const char *relation)
{
	for (const char *line = context; line != NULL; line += line != NULL)
	{
		const char *number = context_number(line, relation);

		if (number != NULL)
			return strtoll(number, NULL, 10);
		line = strchr(line, '\n');
	}
	return 0;
}
/* ---- array literals ---- */

void
array_text(Buffer *out, const char *text, size_t n_bytes)
{
	buffer_printf(out, "%s\"", out->n_bytes > 1 ? "," : "");
	for (const char *end = text + n_bytes; text < end; text++)
	{
		if (*text == '"' || *text == '\\')
			buffer_add(out, "\\", 1);
		buffer_add(out, text, 1);
	}
	buffer_add(out, "\"", 1);
}

void
array_text_or_null(Buffer *out, const char *text)
{
	if (text != NULL)
		array_text(out, text, strlen(text));
	else
		buffer_printf(out, "%sNULL", out->n_bytes > 1 ? "," : "");
}

void
array_number(Buffer *out, int64_t number)
{
	buffer_printf(out, "%s%" PRId64, out->n_bytes > 1 ? "," : "", number);
}
/* ---- what the database knows ---- */

static void
check_privileges(Sink *sink, Config *config, const Table *table)
{
	/* Positions of files that are gone are deleted. */
	const char *params[] = {table->name, config->type == SOURCE_DIRECTORY ? "DELETE" : "UPDATE",
							config->dead_limit > 0 ? "1" : "0", config->metrics_interval_ms > 0 ? "1" : "0"};
	PGresult *result;
	SinkStatus status = sink_run(
		sink,
		"SELECT DISTINCT what FROM (VALUES ($1, 'INSERT'), ('millrace.ingest_offsets', 'SELECT'),"
		" ('millrace.ingest_offsets', 'INSERT'), ('millrace.ingest_offsets', 'UPDATE'),"
		" ('millrace.ingest_offsets', $2),"
		" ('millrace.dead_letters', 'INSERT'), ('millrace.ingest_metrics', 'SELECT'),"
		" ('millrace.ingest_metrics', 'INSERT'), ('millrace.ingest_metrics', 'UPDATE'),"
		" ('millrace.ingest_metrics', 'DELETE')) v(rel, what0), LATERAL (SELECT what0 || ' on ' || rel) "
		"w(what)"
		" WHERE NOT CASE WHEN rel = $1 THEN pg_catalog.has_any_column_privilege(rel, what0)"
		" ELSE pg_catalog.has_table_privilege(rel, what0) END"
		" AND (rel <> 'millrace.ingest_metrics' OR $4 = '1')"
		" UNION ALL SELECT 'USAGE on sequence millrace.dead_letters_id_seq'"
		" WHERE NOT pg_catalog.has_sequence_privilege('millrace.dead_letters_id_seq', 'USAGE')"
		" UNION ALL SELECT 'SELECT (source) on millrace.dead_letters, which dead_letters.limit needs'"
		" WHERE $3 = '1'"
		" AND NOT pg_catalog.has_column_privilege('millrace.dead_letters', 'source', 'SELECT')"
		" UNION ALL SELECT 'INSERT on ' || i.inhrelid::pg_catalog.regclass FROM pg_catalog.pg_inherits i"
		" JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition"
		" WHERE i.inhparent = $1::pg_catalog.regclass"
		" AND NOT pg_catalog.has_any_column_privilege(i.inhrelid, 'INSERT')",
		4, params, &result);

	for (int i = 0; status == SINK_OK && i < PQntuples(result); i++)
		config_error_at(config, "target.connection", "role %s lacks %s", PQuser(sink->connection),
						PQgetvalue(result, i, 0));
	if (status == SINK_OK)
		PQclear(result);
	if (!table->makes_partitions)
		return;
	/* Only a warning: the partitions that exist may do. */
	status = sink_run(sink,
					  "SELECT pg_catalog.has_function_privilege("
					  "'millrace.ensure_partitions(regclass, timestamptz, timestamptz)', 'EXECUTE')"
					  " AND pg_catalog.pg_has_role(c.relowner, 'USAGE') FROM pg_catalog.pg_class c"
					  " WHERE c.oid = $1::pg_catalog.regclass",
					  1, params, &result);
	if (status != SINK_OK)
		return;
	if (PQntuples(result) == 1 && PQgetvalue(result, 0, 0)[0] == 'f')
		log_line(LOG_WARNING,
				 "role %s cannot make partitions of %s: it needs EXECUTE on millrace.ensure_partitions and "
				 "membership in the role that owns the table",
				 PQuser(sink->connection), table->name);
	PQclear(result);
}

/* What on_unknown_field = add_column needs. */
static void
check_growth(Sink *sink, Config *config, const Table *table, char kind)
{
	const char *params[] = {table->name};
	PGresult *result;

	if (config->on_unknown_field != UNKNOWN_ADD_COLUMN)
		return;
	if (kind == 'v')
		config_error_at(config, "target.on_unknown_field", "no column can be added to %s, which is a view",
						table->name);
	else if (sink_run(sink,
					  "SELECT 1 FROM pg_catalog.pg_class WHERE oid = $1::pg_catalog.regclass"
					  " AND pg_catalog.pg_has_role(relowner, 'USAGE')",
					  1, params, &result) == SINK_OK)
	{
		if (PQntuples(result) == 0)
			config_error_at(
				config, "target.on_unknown_field",
				"role %s cannot add columns to %s: it is no member of the role that owns the table",
				PQuser(sink->connection), table->name);
		PQclear(result);
	}
}

void
sink_check_default(Sink *sink, Config *config, const Table *table, const Column *column, const Pair *rule,
				   const char *text)
{
	const char *params[] = {text, column->name};
	bool is_data;
	/* The whole row's type knows length, domain and all that an input function is told. */
	char *sql = column->is_json ? mem_string("SELECT $1::text::pg_catalog.jsonb")
								: mem_printf("SELECT FROM pg_catalog.jsonb_populate_record(NULL::%s,"
											 " pg_catalog.jsonb_build_object($2::text, $1::text))",
											 table->name);

	sink_run_judged(sink, sql, column->is_json ? 1 : 2, params, NULL, &is_data);
	/* Another class may be of a column that stays null here. */
	if (is_data && strncmp(sink->sqlstate, "22", 2) == 0)
		config_error_pair(config, rule, "column \"%s\" cannot have the default: %s", column->name,
						  sink->reason);
	free(sql);
}

static SinkStatus
read_columns(Sink *sink, Table *table, const char *oid)
{
	const char *params[] = {oid};
	PGresult *result;
	SinkStatus status =
		sink_run(sink,
				 "SELECT a.attname, pg_catalog.quote_ident(a.attname), b.oid,"
				 " b.oid IN ('json'::regtype, 'jsonb'::regtype),"
				 " a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL,"
				 " pg_catalog.pg_get_expr(d.adbin, d.adrelid),"
				 " CASE WHEN b.typcategory = 'A' THEN e.typdelim END,"
				 " coalesce(nullif(e.typbasetype, 0), e.oid) IN ('json'::regtype, 'jsonb'::regtype)"
				 " FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid"
				 " JOIN pg_catalog.pg_type b ON b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)"
				 " LEFT JOIN pg_catalog.pg_type e ON e.oid = b.typelem"
				 " LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
				 " WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''"
				 " ORDER BY a.attnum",
				 1, params, &result);

	if (status != SINK_OK)
		return status;
	table->n_columns = PQntuples(result);
	table->columns = mem_alloc(sizeof(Column) * (size_t) (table->n_columns + 1));
	for (int i = 0; i < table->n_columns; i++)
		table->columns[i] = (Column){
			.name = mem_string(PQgetvalue(result, i, 0)),
			.quoted = mem_string(PQgetvalue(result, i, 1)),
			.type_oid = (uint32_t) strtoul(PQgetvalue(result, i, 2), NULL, 10),
			.is_json = PQgetvalue(result, i, 3)[0] == 't',
			.has_default = PQgetvalue(result, i, 4)[0] == 't',
			.expression = PQgetisnull(result, i, 5) ? NULL : mem_string(PQgetvalue(result, i, 5)),
			.array_delimiter = PQgetvalue(result, i, 6)[0],
			.is_json_array = PQgetvalue(result, i, 7)[0] == 't',
		};
	PQclear(result);
	return SINK_OK;
}

static SinkStatus
read_source(Sink *sink, Config *config, Table *table, const char *oid, bool is_partitioned)
{
	const char *params[] = {oid};
	PGresult *result;
	SinkStatus status =
		sink_run(sink,
				 "SELECT time_column, partition_interval IS NOT NULL,"
				 " coalesce(extract(epoch FROM now() - (now() - retention)) * 1000000, 0)::bigint"
				 " FROM millrace.sources WHERE source = $1::oid",
				 1, params, &result);

	if (status != SINK_OK)
		return status;
	const char *registered =
		PQntuples(result) > 0 && !PQgetisnull(result, 0, 0) ? PQgetvalue(result, 0, 0) : NULL;
	const char *chosen = config->time_column ? config->time_column : registered;
	table->time_column = chosen ? mem_string(chosen) : NULL;
	/* The leaves' ranges are of the registered column; a table with another time column is routed by PostgreSQL. */
	table->is_routed = is_partitioned && registered != NULL && strcmp(registered, chosen) == 0;
	table->makes_partitions = table->is_routed && PQgetvalue(result, 0, 1)[0] == 't';
	table->retention_us = table->is_routed ? strtoll(PQgetvalue(result, 0, 2), NULL, 10) : 0;
	PQclear(result);
	for (int i = 0; chosen != NULL && i < table->n_columns; i++)
		if (strcmp(table->columns[i].name, table->time_column) == 0)
			return SINK_OK;
	if (table->time_column != NULL)
		config_error_at(config, "target.time_column", "table %s has no column \"%s\"", table->name,
						table->time_column);
	return SINK_OK;
}

/* The answer's one value, or NULL where there is none; the caller frees it.  Takes the result. */
static SinkStatus
one_text(SinkStatus status, PGresult *result, char **text)
{
	*text = NULL;
	if (status != SINK_OK)
		return status;
	if (PQntuples(result) == 1)
		*text = mem_string(PQgetvalue(result, 0, 0));
	PQclear(result);
	return SINK_OK;
}

/* Oid and columns of the configured table as one text; NULL: there is no such table.  The caller frees it. */
static SinkStatus
read_signature(Sink *sink, char **signature)
{
	const char *params[] = {sink->config->table};
	PGresult *result;
	SinkStatus status = sink_run(
		sink,
		"SELECT c.oid || pg_catalog.string_agg(pg_catalog.format(' %I %s %s', a.attname, a.atttypid,"
		" a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> ''), '' ORDER BY a.attnum)"
		" FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid"
		" WHERE c.oid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped GROUP BY c.oid",
		1, params, &result);

	return one_text(status, result, signature);
}

SinkStatus
sink_has_changed(Sink *sink, const Table *table, bool *has_changed)
{
	char *signature;
	SinkStatus status = read_signature(sink, &signature);

	*has_changed = status == SINK_OK && signature != NULL &&
		(table->signature == NULL || strcmp(signature, table->signature) != 0);
	free(signature);
	return status;
}

/* The table's full name, however the configuration spells it: positions are found again by the name of the stream. */
static void
name_stream(Config *config, const Table *table)
{
	if (config->group == NULL)
		config->group = mem_printf("millrace-%s", table->name);
	if (config->name == NULL)
	{
		config->name = mem_string(config->group);
		metrics_rename(config->metrics, config->name);
	}
}

ExitCode
sink_describe(Sink *sink, Config *config, Table *table)
{
	const char *params[] = {config->table};
	PGresult *result = NULL;
	int n_before = config->n_errors;

	/* to_regclass() would fail without USAGE on the schema. */
	if (sink_run(sink,
				 "SELECT oid, pg_catalog.has_schema_privilege(oid, 'USAGE') FROM pg_catalog.pg_namespace"
				 " WHERE nspname = 'millrace'",
				 0, NULL, &result) != SINK_OK)
		return EXIT_CONNECTION;
	if (PQntuples(result) == 1 && PQgetvalue(result, 0, 1)[0] == 'f')
	{
		config_error_at(config, "target.connection", "role %s lacks USAGE on schema millrace",
						PQuser(sink->connection));
		PQclear(result);
		return EXIT_TARGET;
	}
	PQclear(result);
	if (sink_run(sink, "SELECT pg_catalog.to_regclass('millrace.ingest_offsets')", 0, NULL, &result) !=
		SINK_OK)
		return EXIT_CONNECTION;
	if (PQgetisnull(result, 0, 0))
		config_error_at(config, "target.connection",
						"extension millrace is not in database \"%s\": CREATE EXTENSION millrace",
						PQdb(sink->connection));
	PQclear(result);
	if (config->n_errors > n_before)
		return EXIT_TARGET;
	SinkStatus status = sink_run(
		sink,
		"SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), c.relname, c.relkind, n.nspname,"
		" pg_catalog.has_table_privilege(c.oid, 'INSERT')"
		" FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
		" WHERE c.oid = pg_catalog.to_regclass($1)",
		1, params, &result);
	if (status == SINK_LOST)
		return EXIT_CONNECTION;
	if (status != SINK_OK || PQntuples(result) == 0)
	{
		config_error_at(config, "target.table", "table \"%s\" does not exist", config->table);
		PQclear(result);
		return EXIT_TARGET;
	}
	table->oid = (uint32_t) strtoul(PQgetvalue(result, 0, 0), NULL, 10);
	/* Before the columns: what changes in between is then seen as a change. */
	if (read_signature(sink, &table->signature) != SINK_OK)
	{
		PQclear(result);
		return EXIT_CONNECTION;
	}
	table->name = mem_string(PQgetvalue(result, 0, 1));
	table->relation = mem_string(PQgetvalue(result, 0, 2));
	table->schema = mem_string(PQgetvalue(result, 0, 4));
	table->may_lock = PQgetvalue(result, 0, 5)[0] == 't';
	if (strchr("rpfv", PQgetvalue(result, 0, 3)[0]) == NULL)
		config_error_at(config, "target.table", "%s is not a table", table->name);
	if (read_columns(sink, table, PQgetvalue(result, 0, 0)) != SINK_OK ||
		read_source(sink, config, table, PQgetvalue(result, 0, 0), PQgetvalue(result, 0, 3)[0] == 'p') !=
			SINK_OK)
	{
		PQclear(result);
		return EXIT_CONNECTION;
	}
	check_growth(sink, config, table, PQgetvalue(result, 0, 3)[0]);
	PQclear(result);
	name_stream(config, table);
	/* A line of COPY text belongs to the columns it was made for. */
	sink->witness.line.n_bytes = 0;
	sink->self_reference = ANSWER_UNKNOWN;
	check_privileges(sink, config, table);
	return config->n_errors > n_before ? EXIT_TARGET : EXIT_DONE;
}

void
table_free(Table *table)
{
	for (int i = 0; i < table->n_columns; i++)
	{
		free(table->columns[i].name);
		free(table->columns[i].quoted);
		free(table->columns[i].expression);
	}
	free(table->columns);
	free(table->name);
	free(table->relation);
	free(table->schema);
	free(table->time_column);
	free(table->signature);
	memset(table, 0, sizeof *table);
}

void
leaves_free(Leaves *leaves)
{
	for (int i = 0; i < leaves->n_leaves; i++)
	{
		free(leaves->list[i].name);
		free(leaves->list[i].relation);
		free(leaves->list[i].schema);
	}
	free(leaves->list);
	memset(leaves, 0, sizeof *leaves);
}

SinkStatus
sink_add_columns(Sink *sink, const Table *table, const NewColumns *columns)
{
	if (sink->connection == NULL)
		return SINK_LOST;
	sink->sql.n_bytes = 0;
	buffer_printf(&sink->sql, "BEGIN; SET LOCAL lock_timeout = %" PRId64 "; ALTER TABLE %s",
				  sink->config->lock_timeout_ms, table->name);
	for (int i = 0; i < columns->n_columns; i++)
	{
		const NewColumn *column = &columns->list[i];
		char *quoted = PQescapeIdentifier(sink->connection, column->name, strlen(column->name));

		if (quoted == NULL)
			return SINK_LOST;
		buffer_printf(&sink->sql, "%s ADD COLUMN IF NOT EXISTS %s %s", i > 0 ? "," : "", quoted,
					  column->type);
		PQfreemem(quoted);
		log_line(LOG_INFO, "adding column \"%s\" %s to %s", column->name, column->type, table->name);
	}
	buffer_printf(&sink->sql, "; COMMIT");
	SinkStatus status = sink_run(sink, sink->sql.data, 0, NULL, NULL);
	if (status != SINK_OK && status != SINK_LOST)
		sink_run(sink, "ROLLBACK", 0, NULL, NULL);
	return status;
}

SinkStatus
sink_leaves(Sink *sink, const Table *table, Leaves *leaves)
{
	char oid[16];
	const char *params[] = {oid};
	PGresult *result;
	SinkStatus status;

	leaves_free(leaves);
	if (!table->is_routed)
		return SINK_OK;
	snprintf(oid, sizeof oid, "%" PRIu32, table->oid);
	/* In UTC, so that the bounds of a column without time zone come out as the times without a zone are read here. */
	if ((status = sink_run(sink, "BEGIN; SET LOCAL TimeZone = 'UTC'", 0, NULL, NULL)) != SINK_OK)
		return status;
	status = sink_run(
		sink,
		"SELECT p.partition::oid, pg_catalog.format('%I.%I', n.nspname, c.relname), c.relname,"
		" CASE WHEN isfinite(p.from_time) THEN (extract(epoch FROM p.from_time) * 1000000)::bigint END,"
		" CASE WHEN isfinite(p.to_time) THEN (extract(epoch FROM p.to_time) * 1000000)::bigint END,"
		" n.nspname"
		" FROM millrace.partitions($1::oid::regclass) p JOIN pg_catalog.pg_class c ON c.oid = p.partition"
		" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
		" WHERE p.from_time IS NOT NULL OR p.to_time IS NOT NULL ORDER BY p.from_time NULLS FIRST",
		1, params, &result);
	if (status != SINK_OK)
	{
		sink_run(sink, "ROLLBACK", 0, NULL, NULL);
		return status;
	}
	leaves->n_leaves = PQntuples(result);
	leaves->list = mem_alloc(sizeof(Leaf) * (size_t) (leaves->n_leaves + 1));
	for (int i = 0; i < leaves->n_leaves; i++)
		leaves->list[i] = (Leaf){
			.oid = (uint32_t) strtoul(PQgetvalue(result, i, 0), NULL, 10),
			.name = mem_string(PQgetvalue(result, i, 1)),
			.relation = mem_string(PQgetvalue(result, i, 2)),
			.schema = mem_string(PQgetvalue(result, i, 5)),
			.from_us = PQgetisnull(result, i, 3) ? INT64_MIN : strtoll(PQgetvalue(result, i, 3), NULL, 10),
			.to_us = PQgetisnull(result, i, 4) ? INT64_MAX : strtoll(PQgetvalue(result, i, 4), NULL, 10),
		};
	PQclear(result);
	return sink_run(sink, "COMMIT", 0, NULL, NULL);
}

SinkStatus
sink_ensure_partitions(Sink *sink, const Table *table, int64_t from_us, int64_t to_us)
{
	char oid[16], from[64], to[64];
	const char *params[] = {oid, from, to};

	snprintf(oid, sizeof oid, "%" PRIu32, table->oid);
	time_format(from_us, from, sizeof from);
	time_format(to_us, to, sizeof to);
	log_line(LOG_DEBUG, "asking for the partition of %s that holds %s", table->name, from);
	bool is_data;
	PGresult *result;
	SinkStatus status = sink_run_judged(
		sink, "SELECT millrace.ensure_partitions($1::oid::regclass, $2::timestamptz, $3::timestamptz)", 3,
		params, &result, &is_data);
	if (status == SINK_OK)
	{
		sink->config->metrics->n_partitions += strtol(PQgetvalue(result, 0, 0), NULL, 10);
		PQclear(result);
	}
	if (!is_data)
		return status;
	if (strncmp(sink->sqlstate, "23", 2) != 0)
	{
		log_line(LOG_WARNING, "server refuses: %s (SQLSTATE %s)", sink->reason, sink->sqlstate);
		return status;
	}
	if (!sink->has_warned_default)
		log_line(LOG_WARNING,
				 "no partition can be made for %s, its rows go where PostgreSQL puts them: %s (SQLSTATE %s)",
				 from, sink->reason, sink->sqlstate);
	sink->has_warned_default = true;
	return SINK_OK;
}

/* SQL that turns expression into microseconds: local ones for a column without a time zone, as its leaves have them. */
static void
time_sql(Buffer *sql, const Table *table, const char *expression, const char *from)
{
	uint32_t type = 0;

	for (int i = 0; i < table->n_columns; i++)
		if (strcmp(table->columns[i].name, table->time_column) == 0)
			type = table->columns[i].type_oid;
	buffer_printf(sql,
				  "SELECT CASE WHEN pg_catalog.isfinite(v) THEN (extract(epoch FROM v) * 1000000)::bigint END"
				  " FROM (SELECT (%s)::%s AS v %s) x",
				  expression,
				  type == 1114		 ? "timestamp"
					  : type == 1082 ? "date::timestamp"
									 : "timestamptz",
				  from);
}

/* Texts lo .. hi: where one is no time they are halved until it is found. */
static SinkStatus
read_some_times(Sink *sink, const char *sql, const char *const *texts, const uint32_t *n_bytes,
				int64_t *times_us, int lo, int hi)
{
	Buffer array = {0};
	PGresult *result;
	bool is_data;

	buffer_add(&array, "{", 1);
	for (int i = lo; i < hi; i++)
		array_text(&array, texts[i], n_bytes[i]);
	buffer_add(&array, "}", 2);
	const char *params[] = {array.data};
	SinkStatus status = sink_run_judged(sink, sql, 1, params, &result, &is_data);
	buffer_free(&array);
	if (status == SINK_OK)
	{
		for (int i = lo; i < hi; i++)
			if (!PQgetisnull(result, i - lo, 0))
				times_us[i] = strtoll(PQgetvalue(result, i - lo, 0), NULL, 10);
		PQclear(result);
		return SINK_OK;
	}
	if (!is_data)
		return status;
	if (hi - lo == 1)
		return SINK_OK;
	int middle = lo + (hi - lo) / 2;
	status = read_some_times(sink, sql, texts, n_bytes, times_us, lo, middle);
	return status == SINK_OK ? read_some_times(sink, sql, texts, n_bytes, times_us, middle, hi) : status;
}

/* The DEFAULT's value now; SINK_OK with NO_TIME where it has none or fails. */
static SinkStatus
read_default_time(Sink *sink, const Table *table, int64_t *time_us)
{
	const char *expression = NULL;
	Buffer sql = {0};
	PGresult *result;
	bool is_data;

	for (int i = 0; i < table->n_columns; i++)
		if (strcmp(table->columns[i].name, table->time_column) == 0)
			expression = table->columns[i].expression;
	if (expression == NULL)
		return SINK_OK;
	time_sql(&sql, table, expression, "");
	SinkStatus status = sink_run_judged(sink, sql.data, 0, NULL, &result, &is_data);
	buffer_free(&sql);
	if (status == SINK_OK && PQntuples(result) == 1 && !PQgetisnull(result, 0, 0))
		*time_us = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
	if (status == SINK_OK)
		PQclear(result);
	return is_data ? SINK_OK : status;
}

SinkStatus
sink_read_times(Sink *sink, const Table *table, int n_texts, const char *const *texts,
				const uint32_t *n_bytes, int64_t *times_us)
{
	SinkStatus status = SINK_OK;
	Buffer sql = {0};

	time_sql(&sql, table, "t", "FROM unnest($1::text[]) WITH ORDINALITY u(t, n) ORDER BY n");
	for (int i = 0; i < n_texts; i++)
		times_us[i] = NO_TIME;
	for (int lo = 0, hi; lo < n_texts && status == SINK_OK; lo = hi)
	{
		if (texts[lo] == NULL)
		{
			hi = lo + 1;
			status = read_default_time(sink, table, &times_us[lo]);
			continue;
		}
		for (hi = lo; hi < n_texts && texts[hi] != NULL && hi - lo < TIMES_A_QUERY; hi++)
			;
		status = read_some_times(sink, sql.data, texts, n_bytes, times_us, lo, hi);
	}
	buffer_free(&sql);
	return status;
}

/* What stands for position->file in a query, and is_mark_read() reads. */
#define FILE_COLUMNS                                                                                       \
	"coalesce(file_id, ''), coalesce(file_size, -1),"                                                      \
	" coalesce((extract(epoch FROM file_modified) * 1000000)::bigint, 0), coalesce(file_fingerprint, '')," \
	" file_defect IS NOT NULL"

static FileMark
read_mark(const PGresult *result, int row, int column, int64_t next)
{
	int64_t printed = -1;
	FileMark mark = {
		.size_bytes = strtoll(PQgetvalue(result, row, column + 1), NULL, 10),
		.modified_us = strtoll(PQgetvalue(result, row, column + 2), NULL, 10),
		.defect = PQgetvalue(result, row, column + 4)[0] == 't' ? "damaged" : NULL,
	};

	sscanf(PQgetvalue(result, row, column), "%" SCNu64 "/%" SCNd64, &mark.inode, &mark.born_ns);
	mark.has_prints = sscanf(PQgetvalue(result, row, column + 3), "%" SCNd64 ":%8" SCNx32 ":%8" SCNx32,
							 &printed, &mark.head_crc, &mark.tail_crc) == 3 &&
		printed == next;
	return mark;
}

#define ONE_POSITION                                                    \
	"SELECT next_offset, " FILE_COLUMNS " FROM millrace.ingest_offsets" \
	" WHERE source = $1 AND topic = $2 AND partition = $3::int"

SinkStatus
sink_position(Sink *sink, Position *position, int64_t first)
{
	char partition[16], first_text[24];
	const char *params[] = {sink->config->name, position->topic, partition, first_text};
	PGresult *result;
	SinkStatus status;

	snprintf(partition, sizeof partition, "%" PRId32, position->partition);
	snprintf(first_text, sizeof first_text, "%" PRId64, first);
	status = first == NO_OFFSET || sink->config->n_shown > 0
		? SINK_OK
		: sink_run(sink,
				   "INSERT INTO millrace.ingest_offsets (source, topic, partition, next_offset)"
				   " VALUES ($1, $2, $3::int, $4::bigint) ON CONFLICT DO NOTHING",
				   4, params, NULL);
	if (status != SINK_OK)
		return status;
	status = sink_run(sink, sink->config->n_shown > 0 ? ONE_POSITION : ONE_POSITION " FOR UPDATE", 3, params,
					  &result);
	if (status != SINK_OK)
		return status;
	if (PQntuples(result) == 1)
	{
		position->stored = position->next = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
		position->file = read_mark(result, 0, 1, position->next);
		position->is_new = false;
	}
	else if (first == NO_OFFSET || sink->config->n_shown > 0)
		position->stored = position->next = first;
	else
		status = SINK_RETRY; /* somebody deleted it in between */
	PQclear(result);
	return status;
}

SinkStatus
sink_first_positions(Sink *sink, const char *topic, int n_partitions, const int32_t *partitions,
					 const int64_t *firsts)
{
	Buffer numbers = {0}, array = {0};

	if (sink->config->n_shown > 0)
		return SINK_OK;
	buffer_add(&numbers, "{", 1);
	buffer_add(&array, "{", 1);
	for (int i = 0; i < n_partitions; i++)
	{
		array_number(&numbers, partitions[i]);
		array_number(&array, firsts[i]);
	}
	buffer_add(&numbers, "}", 2);
	buffer_add(&array, "}", 2);
	const char *params[] = {sink->config->name, topic, numbers.data, array.data};
	SinkStatus status =
		sink_run(sink,
				 "INSERT INTO millrace.ingest_offsets (source, topic, partition, next_offset)"
				 " SELECT $1, $2, number, first FROM unnest($3::int[], $4::bigint[]) AS p(number, first)"
				 " WHERE NOT EXISTS (SELECT FROM millrace.ingest_offsets WHERE source = $1 AND topic = $2"
				 " AND partition = ANY ($3::int[])) ON CONFLICT DO NOTHING",
				 4, params, NULL);

	buffer_free(&numbers);
	buffer_free(&array);
	return status;
}

SinkStatus
sink_positions(Sink *sink, Positions *positions)
{
	const char *params[] = {sink->config->name};
	PGresult *result;
	SinkStatus status = sink_run(sink,
								 "SELECT topic, next_offset, " FILE_COLUMNS " FROM millrace.ingest_offsets"
								 " WHERE source = $1 AND partition = 0 ORDER BY topic COLLATE \"C\"",
								 1, params, &result);

	if (status != SINK_OK)
		return status;
	positions_clear(positions);
	positions->n_positions = PQntuples(result);
	positions->list = mem_alloc(sizeof(Position) * (size_t) (positions->n_positions + 1));
	for (int i = 0; i < positions->n_positions; i++)
	{
		int64_t stored = strtoll(PQgetvalue(result, i, 1), NULL, 10);

		positions->list[i] = (Position){
			.topic = mem_string(PQgetvalue(result, i, 0)),
			.stored = stored,
			.file = read_mark(result, i, 2, stored),
		};
	}
	PQclear(result);
	return SINK_OK;
}

SinkStatus
sink_forget(Sink *sink, const Positions *positions)
{
	Buffer topics = {0}, stored = {0};

	if (sink->config->n_shown > 0)
		return SINK_OK;
	buffer_add(&topics, "{", 1);
	buffer_add(&stored, "{", 1);
	for (int i = 0; i < positions->n_positions; i++)
	{
		array_text_or_null(&topics, positions->list[i].topic);
		array_number(&stored, positions->list[i].stored);
	}
	buffer_add(&topics, "}", 2);
	buffer_add(&stored, "}", 2);
	const char *params[] = {sink->config->name, topics.data, stored.data};
	SinkStatus status = sink_run(
		sink,
		"DELETE FROM millrace.ingest_offsets o USING unnest($2::text[], $3::bigint[]) AS p(topic, stored)"
		" WHERE o.source = $1 AND o.topic = p.topic AND o.partition = 0 AND o.next_offset = p.stored",
		3, params, NULL);
	buffer_free(&topics);
	buffer_free(&stored);
	return status;
}

SinkStatus
sink_compare(Sink *sink, const Positions *positions, bool *is_same)
{
	Buffer topics = {0}, partitions = {0}, stored = {0};
	int n_positions = 0;
	PGresult *result;

	*is_same = true;
	buffer_add(&topics, "{", 1);
	buffer_add(&partitions, "{", 1);
	buffer_add(&stored, "{", 1);
	for (int i = 0; i < positions->n_positions; i++)
	{
		const Position *position = &positions->list[i];

		if (!position->is_assigned)
			continue;
		array_text(&topics, position->topic, strlen(position->topic));
		array_number(&partitions, position->partition);
		array_number(&stored, position->stored);
		n_positions++;
	}
	buffer_add(&topics, "}", 2);
	buffer_add(&partitions, "}", 2);
	buffer_add(&stored, "}", 2);
	const char *params[] = {sink->config->name, topics.data, partitions.data, stored.data};
	SinkStatus status = sink_run(
		sink,
		"SELECT count(*) FROM unnest($2::text[], $3::int[], $4::bigint[]) AS p(topic, partition, stored)"
		" JOIN millrace.ingest_offsets o ON o.source = $1 AND o.topic = p.topic AND o.partition = p.partition"
		" AND o.next_offset = p.stored",
		4, params, &result);
	if (status == SINK_OK)
	{
		*is_same = strtol(PQgetvalue(result, 0, 0), NULL, 10) == n_positions;
		PQclear(result);
	}
	buffer_free(&topics);
	buffer_free(&partitions);
	buffer_free(&stored);
	return status;
}

/* ---- what the commands ask ---- */

/* Letter of one line of the result, which has all as bytes. */
static Letter
read_letter(const PGresult *result, int i)
{
	const char *values[13];
	size_t n_bytes[13];

	for (int c = 0; c < 13; c++)
	{
		values[c] = PQgetisnull(result, i, c) ? NULL : PQgetvalue(result, i, c);
		n_bytes[c] = (size_t) PQgetlength(result, i, c);
	}
	Letter letter = {
		.id = strtoll(values[0], NULL, 10),
		.topic = values[1],
		.partition = (int32_t) strtol(values[2], NULL, 10),
		.message = {.offset = strtoll(values[3], NULL, 10),
					.key = values[4],
					.n_key_bytes = n_bytes[4],
					.data = values[5],
					.n_bytes = n_bytes[5],
					.headers = values[6],
					.n_header_bytes = n_bytes[6],
					.timestamp_us = values[7] ? strtoll(values[7], NULL, 10) : NO_TIME},
		.csv_header = values[8],
		.stage = values[9],
		.sqlstate = values[10],
		.reason = values[11],
		.created = values[12],
	};
	letter.message.next_offset = letter.message.offset + 1;
	return letter;
}

static SinkStatus
last_letter(Sink *sink, int64_t *until)
{
	const char *params[] = {sink->config->name};
	PGresult *result;
	SinkStatus status =
		sink_run(sink, "SELECT max(id) FROM millrace.dead_letters WHERE source = $1", 1, params, &result);

	if (status == SINK_OK)
	{
		*until = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
		PQclear(result);
	}
	return status;
}

SinkStatus
sink_letters(Sink *sink, const LetterFilter *filter, int64_t after, int64_t *until, int64_t n_most,
			 int64_t max_bytes, LetterCall call, void *context, int *n_letters)
{
	char numbers[4][24];
	const char *params[] = {sink->config->name, numbers[0],		  numbers[1], filter->ids,
							filter->stage,		filter->sqlstate, numbers[2], numbers[3]};
	SinkStatus status = SINK_OK;

	*n_letters = 0;
	if (*until == 0 && (status = last_letter(sink, until)) != SINK_OK)
		return status;
	snprintf(numbers[0], sizeof numbers[0], "%" PRId64, after);
	snprintf(numbers[1], sizeof numbers[1], "%" PRId64, *until);
	snprintf(numbers[2], sizeof numbers[2], "%" PRId64, n_most);
	snprintf(numbers[3], sizeof numbers[3], "%" PRId64, max_bytes);
	if (sink->connection == NULL)
		return SINK_LOST;
	/* The sizes of payloads are known without fetching them. */
	PGresult *result = PQexecParams(
		sink->connection,
		"SELECT id::text, topic, partition::text, \"offset\"::text, key, payload, headers::text,"
		" (extract(epoch FROM message_time) * 1000000)::bigint::text, csv_header, stage, sqlstate, reason,"
		" created::text FROM millrace.dead_letters WHERE id IN (SELECT id FROM (SELECT id,"
		" sum(n_bytes) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - n_bytes AS n_before FROM (SELECT id,"
		" coalesce(pg_catalog.octet_length(payload), 0) AS n_bytes FROM millrace.dead_letters"
		" WHERE source = $1 AND id > $2::bigint AND id <= $3::bigint"
		" AND ($4::int8multirange IS NULL OR id <@ $4::int8multirange)"
		" AND ($5::text IS NULL OR stage = $5) AND ($6::text IS NULL OR sqlstate = $6)"
		" ORDER BY id LIMIT $7::bigint) x) y WHERE n_before < $8::bigint) ORDER BY millrace.dead_letters.id",
		8, NULL, params, NULL, NULL, 1);
	if (PQresultStatus(result) != PGRES_TUPLES_OK)
	{
		bool is_data;

		status = sink_judge(sink, result, &is_data);
		if (is_data)
			log_line(LOG_WARNING, "server refuses: %s (SQLSTATE %s)", sink->reason, sink->sqlstate);
		PQclear(result);
		return status;
	}
	*n_letters = PQntuples(result);
	for (int i = 0; i < *n_letters; i++)
	{
		Letter letter = read_letter(result, i);

		call(context, &letter, i, *n_letters);
	}
	PQclear(result);
	return SINK_OK;
}

SinkStatus
sink_offsets(Sink *sink, OffsetCall call, void *context)
{
	const char *params[] = {sink->config->name};
	PGresult *result;
	SinkStatus status = sink_run(
		sink,
		"SELECT topic, partition, next_offset, updated FROM millrace.ingest_offsets WHERE source = $1"
		" ORDER BY topic COLLATE \"C\", partition",
		1, params, &result);

	if (status != SINK_OK)
		return status;
	for (int i = 0; i < PQntuples(result); i++)
		call(context, PQgetvalue(result, i, 0), PQgetvalue(result, i, 1), PQgetvalue(result, i, 2),
			 PQgetvalue(result, i, 3));
	PQclear(result);
	return SINK_OK;
}

SinkStatus
sink_set_offset(Sink *sink, const char *topic, const char *partition, const char *next_offset, char **old)
{
	const char *params[] = {sink->config->name, topic, partition, next_offset};
	PGresult *result;
	SinkStatus status =
		sink_run(sink,
				 "WITH old AS (SELECT next_offset FROM millrace.ingest_offsets"
				 " WHERE source = $1 AND topic = $2 AND partition = $3::int),"
				 " new AS (INSERT INTO millrace.ingest_offsets (source, topic, partition, next_offset)"
				 " VALUES ($1, $2, $3::int, $4::bigint) ON CONFLICT (source, topic, partition)"
				 " DO UPDATE SET next_offset = excluded.next_offset, updated = now(), file_size = NULL,"
				 " file_fingerprint = NULL, file_defect = NULL)"
				 " SELECT next_offset FROM old",
				 4, params, &result);

	return one_text(status, result, old);
}
/* ---- metrics ---- */

enum
{
	SAMPLE_NAME,
	SAMPLE_TOPIC,
	SAMPLE_PARTITION,
	SAMPLE_BOUND,
	SAMPLE_VALUE,
	N_SAMPLE_ARRAYS
};

static void
add_sample(const Sample *sample, void *to)
{
	Buffer *arrays = to;

	array_text_or_null(&arrays[SAMPLE_NAME], sample->name);
	array_text_or_null(&arrays[SAMPLE_TOPIC], sample->topic);
	if (sample->topic != NULL)
		array_number(&arrays[SAMPLE_PARTITION], sample->partition);
	else
		array_text_or_null(&arrays[SAMPLE_PARTITION], NULL);
	array_text_or_null(&arrays[SAMPLE_BOUND], sample->bound);
	buffer_printf(&arrays[SAMPLE_VALUE], "%s%.17g", arrays[SAMPLE_VALUE].n_bytes > 1 ? "," : "",
				  sample->value);
}

void
sink_metrics(Sink *sink, bool is_last)
{
	static const char sql[] =
		"WITH new AS (SELECT s.metric, jsonb_strip_nulls(jsonb_build_object('topic', s.topic, 'partition',"
		" s.partition, 'le', s.bound)) AS labels, s.value FROM unnest($3::text[], $4::text[], $5::int[],"
		" $6::text[], $7::float8[]) s(metric, topic, partition, bound, value)),"
		" gone AS (DELETE FROM millrace.ingest_metrics m WHERE m.source = $1"
		" AND (m.updated < now() - interval '1 day' OR (m.instance = $2 AND NOT EXISTS"
		" (SELECT FROM new n WHERE n.metric = m.metric AND n.labels = m.labels))))"
		" INSERT INTO millrace.ingest_metrics (source, instance, metric, labels, value)"
		" SELECT $1, $2, n.metric, n.labels, n.value FROM new n"
		" ON CONFLICT (source, instance, metric, labels) DO UPDATE SET value = excluded.value, updated = "
		"now()";
	const Config *config = sink->config;
	Buffer arrays[N_SAMPLE_ARRAYS] = {0};
	const char *params[2 + N_SAMPLE_ARRAYS] = {config->name};
	char host[256] = "", instance[300];
	int64_t now_us = monotonic_us();

	if (config->metrics_interval_ms == 0 || sink->connection == NULL ||
		(!is_last && now_us < sink->metrics_us))
		return;
	sink->metrics_us = now_us + config->metrics_interval_ms * 1000;
	gethostname(host, sizeof host - 1);
	snprintf(instance, sizeof instance, "%s:%ld", host, (long) getpid());
	params[1] = instance;
	for (int i = 0; i < N_SAMPLE_ARRAYS; i++)
		buffer_add(&arrays[i], "{", 1);
	metrics_each(config->metrics, add_sample, arrays);
	for (int i = 0; i < N_SAMPLE_ARRAYS; i++)
	{
		buffer_add(&arrays[i], "}", 2);
		params[2 + i] = arrays[i].data;
	}
	sink_run(sink, sql, 2 + N_SAMPLE_ARRAYS, params, NULL);
	for (int i = 0; i < N_SAMPLE_ARRAYS; i++)
		buffer_free(&arrays[i]);
}
/* ---- maintenance ---- */

static void
on_maintenance_notice(void *context, const PGresult *result)
{
	const char *severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);

	(void) context;
	log_line(severity && strcmp(severity, "WARNING") == 0 ? LOG_WARNING : LOG_DEBUG, "server: %s",
			 PQresultErrorMessage(result));
}

/* True when this process is the only one that does it from now on, until the connection ends. */
static bool
may_begin(Sink *sink, const char *what)
{
	const char *params[] = {what};
	PGresult *result;

	if (sink_run(sink, "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($1, 0))", 1,
				 params, &result) != SINK_OK)
		return false;
	bool is_first = PQgetvalue(result, 0, 0)[0] == 't';
	PQclear(result);
	return is_first;
}

/* One statement about a partition: verb, its name, rest.  Locks are waited for no longer than lock_timeout. */
static SinkStatus
about_partition(Sink *sink, const char *lock_timeout, const char *verb, const char *partition,
				const char *rest)
{
	const char *params[] = {lock_timeout};
	SinkStatus status =
		sink_run(sink, "SELECT pg_catalog.set_config('lock_timeout', $1, false)", 1, params, NULL);

	if (status != SINK_OK)
		return status;
	char *sql = mem_printf("%s %s %s", verb, partition, rest);
	status = sink_run(sink, sql, 0, NULL, NULL);
	free(sql);
	return status;
}

#define SHORT_WAIT "2s" /* for a lock that keeps others waiting behind it */
#define LONG_WAIT "0"	/* for one that does not */

/* Detached partitions are dropped, also those of a run that was interrupted: they are known by their comment. */
static SinkStatus
drop_detached(Sink *sink, const char *detach, const char *mark)
{
	const char *params[] = {mark};
	PGresult *result;
	SinkStatus status =
		sink_run(sink,
				 "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), c.relispartition"
				 " FROM pg_catalog.pg_description d JOIN pg_catalog.pg_class c ON c.oid = d.objoid"
				 " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
				 " LEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid"
				 " WHERE d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0"
				 " AND d.description = $1 AND (NOT c.relispartition OR i.inhdetachpending)"
				 " AND pg_catalog.pg_has_role(c.relowner, 'USAGE')",
				 1, params, &result);

	if (status != SINK_OK)
		return status;
	for (int i = 0; i < PQntuples(result) && status != SINK_LOST; i++)
	{
		const char *partition = PQgetvalue(result, i, 0);

		status = PQgetvalue(result, i, 1)[0] == 't'
			? about_partition(sink, LONG_WAIT, detach, partition, "FINALIZE")
			: SINK_OK;
		if (status == SINK_OK)
			status = about_partition(sink, SHORT_WAIT, "DROP TABLE", partition, "");
		if (status != SINK_OK)
			continue;
		sink->config->metrics->n_expired++;
		log_line(LOG_INFO, "partition %s is older than the retention of its table: dropped", partition);
	}
	PQclear(result);
	return status;
}

static SinkStatus
detach_expired(Sink *sink, const char *oid, const char *detach, const char *mark)
{
	const char *params[] = {oid, mark};
	PGresult *result;
	SinkStatus status = sink_run(sink,
								 "SELECT partition, pg_catalog.quote_literal($2)"
								 " FROM millrace.expired_partitions($1::oid::pg_catalog.regclass)",
								 2, params, &result);

	if (status != SINK_OK)
		return status;
	for (int i = 0; i < PQntuples(result) && status == SINK_OK; i++)
	{
		const char *partition = PQgetvalue(result, i, 0);
		char *comment = mem_printf("IS %s", PQgetvalue(result, i, 1));

		/* Before it is detached: who finds it later knows what it is. */
		status = about_partition(sink, SHORT_WAIT, "COMMENT ON TABLE", partition, comment);
		free(comment);
		if (status == SINK_OK)
			status = about_partition(sink, LONG_WAIT, detach, partition, "CONCURRENTLY");
	}
	PQclear(result);
	return status;
}

/* A table with a default partition: nothing can be detached concurrently. */
static void
drop_expired(Sink *sink, const char *oid)
{
	const char *params[] = {oid};
	PGresult *result;

	if (sink_run(sink, "SELECT millrace.drop_expired_partitions($1::oid::pg_catalog.regclass)", 1, params,
				 &result) != SINK_OK)
		return;
	int64_t n_dropped = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
	PQclear(result);
	sink->config->metrics->n_expired += n_dropped;
	if (n_dropped > 0)
		log_line(LOG_INFO, "%" PRId64 " partitions are older than the retention of their table: dropped",
				 n_dropped);
}

static void
apply_retention(Sink *sink, const char *oid, const char *table, bool has_default)
{
	char *lock = mem_printf("millrace retention of %s", oid);
	char *detach = mem_printf("ALTER TABLE %s DETACH PARTITION", table);
	char *mark = mem_printf("Expired partition of %s, which millrace is about to drop", table);

	if (!may_begin(sink, lock))
		goto done;
	if (drop_detached(sink, detach, mark) == SINK_LOST)
		goto done;
	if (has_default)
		drop_expired(sink, oid);
	else if (detach_expired(sink, oid, detach, mark) != SINK_LOST)
		drop_detached(sink, detach, mark);
done:
	free(lock);
	free(detach);
	free(mark);
}

void
sink_maintain(Sink *sink)
{
	static const char maintain[] = "CALL millrace.maintain()";
	const char *params[] = {sink->config->table};
	PGresult *result;

	PQsetNoticeReceiver(sink->connection, on_maintenance_notice, NULL);
	if (sink_run(sink,
				 "SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname),"
				 " pg_catalog.has_function_privilege('millrace.maintain(text)', 'EXECUTE'),"
				 " s.retention IS NOT NULL AND p.partrelid IS NOT NULL"
				 " AND pg_catalog.pg_has_role(c.relowner, 'USAGE'), p.partdefid <> 0"
				 " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
				 " LEFT JOIN millrace.sources s ON s.source = c.oid"
				 " LEFT JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = c.oid"
				 " WHERE c.oid = pg_catalog.to_regclass($1)",
				 1, params, &result) != SINK_OK)
		return;
	/* Streams first: what is marked to be computed again is, while its rows are there. */
	bool is_known = PQntuples(result) == 1, is_lost = false;
	bool maintains =
		is_known && PQgetvalue(result, 0, 2)[0] == 't' && may_begin(sink, "millrace maintenance");
	if (maintains)
		is_lost = sink_run(sink, maintain, 0, NULL, NULL) == SINK_LOST;
	if (is_known && !is_lost && PQgetvalue(result, 0, 3)[0] == 't')
	{
		int64_t n_expired = sink->config->metrics->n_expired;

		apply_retention(sink, PQgetvalue(result, 0, 0), PQgetvalue(result, 0, 1),
						PQgetvalue(result, 0, 4)[0] == 't');
		/* What is kept of users' items is not used until it has forgotten those partitions. */
		if (maintains && sink->config->metrics->n_expired > n_expired &&
			sink_run(sink, "RESET lock_timeout", 0, NULL, NULL) == SINK_OK)
			sink_run(sink, maintain, 0, NULL, NULL);
	}
	PQclear(result);
}

/* ---- trying again ---- */

/* Waits a little longer each time, up to a limit; a random part keeps many ingesters apart. */
static void
pause_longer(Retry *retry)
{
	retry->pause_ms = retry->pause_ms ? retry->pause_ms * 2 : FIRST_PAUSE_MS;
	if (retry->pause_ms > LONGEST_PAUSE_MS)
		retry->pause_ms = LONGEST_PAUSE_MS;
	wait_ms(retry->pause_ms / 2 + random() % (retry->pause_ms / 2 + 1));
}

/*
 * What the server still does for the connection that was lost ends: until it notices by itself, it would hold the locks
 * that this process needs next.  A batch that is being committed is committed or not, and settle_commit() waits for it.
 */
static void
end_old_session(Sink *sink, char *old[2])
{
	if (old[0] != NULL)
		sink_run(sink,
				 "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_get_activity($1::int)"
				 " WHERE backend_start = $2::timestamptz",
				 2, (const char *const *) old, NULL);
}

static bool
reconnect(Sink *sink, Retry *retry, ExitCode *exit_code)
{
	bool is_zone_wrong;
	char *old[2] = {sink->session[0], sink->session[1]};
	/* It may be there again and again, and lost again by what is done over it. */
	bool is_over = retry->lost_since_us != 0 &&
		monotonic_us() - retry->lost_since_us > sink->config->reconnect_ms * 1000;
	bool is_given_up = is_over, is_connected = false;

	int64_t begun_us = monotonic_us();

	sink->session[0] = sink->session[1] = NULL;
	if (retry->lost_since_us == 0)
		retry->lost_since_us = begun_us;
	while (!is_over)
	{
		pause_longer(retry);
		is_over = stop_requested();
		if (is_over)
			*exit_code = EXIT_DONE;
		else if (sink_connect(sink, LOG_WARNING, &is_zone_wrong) && !is_zone_wrong)
		{
			end_old_session(sink, old);
			sink->config->metrics->n_reconnects++;
			log_line(LOG_WARNING, "connected to the database again");
			is_connected = true;
			break;
		}
		else if (monotonic_us() - retry->lost_since_us > sink->config->reconnect_ms * 1000)
			is_over = is_given_up = true;
	}
	if (is_given_up)
	{
		log_line(LOG_ERROR,
				 "no connection to the database within target.reconnect; the open batch is not stored");
		*exit_code = EXIT_CONNECTION;
	}
	/* While nobody answered, nobody refused. */
	if (retry->refused_since_us != 0)
		retry->refused_since_us += monotonic_us() - begun_us;
	free(old[0]);
	free(old[1]);
	return is_connected;
}

bool
sink_is_there(Sink *sink)
{
	bool is_zone_wrong;
	int64_t now_us = monotonic_us();

	if (sink->connection != NULL && PQconsumeInput(sink->connection) == 1 &&
		PQstatus(sink->connection) == CONNECTION_OK)
		return true;
	if (now_us < sink->try_us)
		return false;
	if (sink->connection != NULL)
		log_line(LOG_WARNING, "connection to the database lost while nothing was stored");
	bool is_connected = sink_connect(sink, LOG_WARNING, &is_zone_wrong) && !is_zone_wrong;
	sink->config->metrics->is_database_lost = !is_connected;
	sink->try_us = monotonic_us() + LONGEST_PAUSE_MS * 1000;
	if (!is_connected)
		return false;
	sink->config->metrics->n_reconnects++;
	log_line(LOG_WARNING, "connected to the database again");
	return true;
}

bool
sink_again(Sink *sink, Retry *retry, SinkStatus status, ExitCode *exit_code)
{
	Metrics *metrics = sink->config->metrics;

	*exit_code = EXIT_DONE;
	metrics->is_database_lost = status == SINK_LOST || status == SINK_RETRY;
	metrics->n_retries += status == SINK_RETRY;
	metrics->n_fenced += status == SINK_FENCED;
	switch (status)
	{
		case SINK_OK:
			return false;
		case SINK_LOST:
			return reconnect(sink, retry, exit_code);
		case SINK_DENIED:
			*exit_code = EXIT_TARGET;
			return false;
		case SINK_FENCED:
			*exit_code = EXIT_FENCED;
			return false;
		case SINK_LIMIT:
			*exit_code = EXIT_LIMIT;
			return false;
		case SINK_MOVED:
			if (++retry->n_moved <= MAX_MOVED)
				return true;
			break;
		case SINK_RETRY:
		case SINK_BROKEN:
		case SINK_CHANGED:
			break;
	}
	retry->lost_since_us = 0; /* it answers */
	if (retry->refused_since_us == 0)
		retry->refused_since_us = monotonic_us();
	if (monotonic_us() - retry->refused_since_us > sink->config->retry_ms * 1000)
	{
		log_line(LOG_ERROR, "the server still refuses after target.retry; the open batch is not stored");
		*exit_code = EXIT_REFUSED;
		return false;
	}
	pause_longer(retry);
	return !stop_requested();
}
