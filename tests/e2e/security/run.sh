#!/usr/bin/env bash
# The ingester with TLS and SCRAM on both sides, certificates that must be refused, and hostile names from topic to table.
. "$(dirname "$0")/../../lib/scenario.sh"
millrace=${MILLRACE:-millrace}
secret='sword "fi$h'\''s\'

mkdir "$work/tls"
"$here/certificates" "$work/tls" || exit 1
store() { printf '%s\n' "listener.name.$1.ssl.keystore.type=PEM" "listener.name.$1.ssl.keystore.location=$work/tls/$2.pem"; }
mapfile -t listeners < <(store tls good; store wrong wrong; store expired expired; store scram good)
(start_kafka +TLS=SSL +WRONG=SSL +EXPIRED=SSL +SCRAM=SASL_SSL "${listeners[@]}" listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-256 \
	'listener.name.scram.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;' \
	'listener.name.tls.ssl.client.auth=required' listener.name.tls.ssl.truststore.type=PEM "listener.name.tls.ssl.truststore.location=$work/tls/ca.crt") &
kafka=$!

# ---- PostgreSQL: only by TLS, only with a password ----

for name in good wrong expired; do # readable for the server, whoever it runs as
	cp "$work/tls/$name.key" "$work/$name.key"
	[ "$(id -u)" != 0 ] || chown postgres: "$work/$name.key"
	chmod 600 "$work/$name.key"
done
start_cluster ssl=on "ssl_cert_file='$work/tls/good.crt'" "ssl_key_file='$work/good.key'" log_connections=on
psql -qAtX -v ON_ERROR_STOP=1 -v secret="$secret" <<'SQL' >/dev/null || exit 1
SET client_min_messages = warning;
CREATE EXTENSION millrace;
CREATE ROLE ingester LOGIN PASSWORD :'secret';
CREATE TABLE t (id int PRIMARY KEY, name text);
GRANT USAGE ON SCHEMA millrace TO ingester;
GRANT SELECT ON millrace.sources TO ingester;
GRANT SELECT, INSERT, UPDATE, DELETE ON millrace.ingest_offsets, millrace.ingest_metrics TO ingester;
GRANT INSERT ON millrace.dead_letters TO ingester;
GRANT USAGE ON SEQUENCE millrace.dead_letters_id_seq TO ingester;
GRANT INSERT ON t TO ingester;
COPY (VALUES ('hostssl all ingester 127.0.0.1/32 scram-sha-256'), ('host all ingester 127.0.0.1/32 reject'), ('host all postgres 127.0.0.1/32 trust'))
	TO PROGRAM 'cat > pg_hba.conf';
SELECT pg_reload_conf();
SQL
certificate() { # certificate NAME: what PostgreSQL shows from now on
	psql -qX -c "ALTER SYSTEM SET ssl_cert_file = '$work/tls/$1.crt'" -c "ALTER SYSTEM SET ssl_key_file = '$work/$1.key'" -c 'SELECT pg_reload_conf()' >/dev/null
	until_true shows "$1"
}
shows() { openssl s_client -starttls postgres -connect "127.0.0.1:$PGPORT" </dev/null 2>/dev/null | grep -q "CN = $1$"; }

target() { # target NAME_OR_IP ROOT PASSWORD: a connection string
	local password=${3//\\/\\\\}
	printf "host=%s hostaddr=127.0.0.1 port=%s user=ingester dbname=postgres password='%s' sslmode=verify-full sslrootcert=%s channel_binding=require" \
		"$1" "$PGPORT" "${password//\'/\\\'}" "$2"
}
printf '[source]\ntype = stdin\nformat = json\nname = by_tls\n[target]\ntable = t\n' >"$work/stdin.ini"
store_one() { # store_one ID CONNECTION: exit status in $?, log in $work/log
	printf '{"id": %s, "name": "x"}\n' "$1" | "$millrace" run "$work/stdin.ini" --target.connection="$2" >"$work/log" 2>&1
}
export PGSSLMODE=disable # psql's own; the connection strings say what they want
unset_ssl() { env -u PGSSLMODE "$@"; }

store_one 1 "$(target localhost "$work/tls/ca.crt" "$secret")"
is "$?" 0 "PostgreSQL by TLS, verify-full, SCRAM with channel binding" || diag <"$work/log"
is "$(value 'SELECT id FROM t')" 1 "the row is there"
like "$(cat "$work/cluster/log")" 'identity="ingester" method=scram-sha-256.*user=ingester.*SSL enabled' "the server saw both"
store_one 2 "host=127.0.0.1 port=$PGPORT user=ingester dbname=postgres password=x sslmode=disable"
like "$? $(cat "$work/log")" '^[1-9].*pg_hba.conf rejects connection.*no encryption' "not without TLS"
store_one 2 "$(target localhost "$work/tls/ca.crt" "no$secret")"
like "$? $(cat "$work/log")" '^[1-9].*password authentication failed for user "ingester"' "not with a wrong password"
cp "$work/log" "$work/log.password"
store_one 2 "$(target localhost "$work/tls/other.crt" "$secret")"
like "$? $(cat "$work/log")" '^[1-9].*certificate verify failed' "not by another authority"
store_one 2 "$(target db.example.org "$work/tls/ca.crt" "$secret")"
like "$? $(cat "$work/log")" '^[1-9].*certificate for "(good|localhost)".*does not match host name "db.example.org"' "not under another name"
certificate wrong
store_one 2 "$(target localhost "$work/tls/ca.crt" "$secret")"
like "$? $(cat "$work/log")" '^[1-9].*certificate for "kafka.example.org".*does not match host name "localhost"' "not with a certificate of another host"
certificate expired
store_one 2 "$(target localhost "$work/tls/ca.crt" "$secret")"
like "$? $(cat "$work/log")" '^[1-9].*certificate (verify failed|has expired)' "not with one that has expired"
certificate good
store_one 2 "$(target localhost "$work/tls/ca.crt" "$secret")"
is "$? $(value 'SELECT count(*) FROM t')" "0 2" "with the right one again; nothing was stored meanwhile"

# ---- Kafka ----

wait "$kafka" || exit 1
. "$work/kafka/env"
"$lib/kafka" user "$work/kafka" me swordfish
"$lib/kafka" topic "$work/kafka" events 2
printf '[source]\ntype = kafka\ntopic = events\n[target]\ntable = t\n' >"$work/in.ini"
kafka() { # kafka VERB LISTENER ROOT OPTION …: of this listener, trusting this authority
	local brokers=BROKERS_$2
	"$millrace" $1 "$work/in.ini" --source.brokers="${!brokers}" --source.kafka.security.protocol=ssl --source.kafka.ssl.ca.location="$work/tls/$3.crt" \
		--target.connection="$(target localhost "$work/tls/ca.crt" "$secret")" "${@:4}"
}
me=(--source.kafka.security.protocol=sasl_ssl --source.kafka.sasl.mechanisms=SCRAM-SHA-256 --source.kafka.sasl.username=me)
own=(--source.kafka.ssl.certificate.location="$work/tls/good.crt" --source.kafka.ssl.key.location="$work/tls/good.pkcs8")

# Refused ones take until nobody has answered for ten seconds: all at once.
declare -A case_pid
begin() { # begin CASE ARGUMENT …
	kafka "${@:2}" >"$work/refused.$1" 2>&1 &
	case_pid[$1]=$!
}
begin other check TLS other "${own[@]}"
begin wrong check WRONG ca
begin expired "run --once" EXPIRED ca
begin nobody check TLS ca
begin password "run --once" SCRAM ca "${me[@]}" --source.kafka.sasl.password=wrongfish --source.kafka.debug=security,broker
begin plain check SCRAM ca --source.kafka.security.protocol=plaintext

for i in $(seq 3 102); do printf '{"id": %s, "name": "ü"}\n' "$i"; done >"$work/events"
millrace_produce() { "$millrace" produce "$work/events" --to="$work/to.ini" --rate=100000 --count=100 >"$work/log" 2>&1; }
printf '[source]\ntype = kafka\ntopic = events\nbrokers = %s\nkafka.security.protocol = sasl_ssl\nkafka.ssl.ca.location = %s\nkafka.sasl.mechanisms = SCRAM-SHA-256\nkafka.sasl.username = me\nkafka.sasl.password = swordfish\n[target]\ntable = t\n' \
	"$BROKERS_SCRAM" "$work/tls/ca.crt" >"$work/to.ini"
millrace_produce
is "$?" 0 "produce by TLS and SCRAM" || diag <"$work/log"
kafka "run --once" SCRAM ca "${me[@]}" --source.kafka.sasl.password=swordfish >"$work/log" 2>&1
is "$? $(value 'SELECT count(*), min(id), max(id) FROM t')" "0 102|1|102" "Kafka by TLS and SCRAM-SHA-256, PostgreSQL by TLS and SCRAM: every row once" || diag <"$work/log"
kafka check TLS ca "${own[@]}" >"$work/log" 2>&1
is "$?" 0 "Kafka that asks for a certificate gets ours" || diag <"$work/log"

refused() { # refused CASE REGEX NAME: ended with status 3 and said so
	wait "${case_pid[$1]}"
	like "$? $(cat "$work/refused.$1")" "^3 .*$2" "$3"
}
refused other 'certificate of [^ ]* refused: its authority is not in ssl.ca.location' "another authority: why"
refused wrong 'certificate of [^ ]* refused: it is for another (address|host)' "a certificate of another host: why"
refused expired 'certificate of [^ ]* refused: it has expired' "an expired certificate: why"
refused nobody 'no answer from' "no certificate of our own"
refused password 'SASL authentication error: Authentication failed' "a wrong password"
refused plain 'no answer from' "without TLS"
is "$(grep -lE 'wrongfish|swordfish|sword .fi.h' "$work"/refused.* "$work/log" "$work/log.password" "$work/cluster/log" "$work/kafka/log" 2>/dev/null | wc -l)" 0 "no password in any log"
is "$(value "SELECT count(*) FROM t")" 102 "and nothing but the events is in the table"

# ---- names: keys of the file, fields, columns, schema, table, stream ----

psql -qAtX <<'SQL' >/dev/null
CREATE SCHEMA "S '""%s $$ \";
CREATE TABLE "S '""%s $$ \"."T ""x' ; --" ("At '" timestamptz NOT NULL, "Käse "" %s" text, "back\slash" int, "new""; DROP TABLE t; --" int) PARTITION BY RANGE ("At '");
SELECT millrace.create_source('"S ''""%s $$ \"."T ""x'' ; --"', 'At ''');
SQL
cat >"$work/names.ini" <<'INI'
[source]
type = stdin
format = json
name = n'"%s $$ \ {x="y"}
[target]
table = "S '""%s $$ \"."T ""x' ; --"
[columns]
At ' = when '"
Käse " %s = %s $$
back\slash = a\b
new"; DROP TABLE t; -- = '); --
INI
cat >"$work/names.json" <<'JSON'
{"when '\"": "2024-01-01T00:00:00Z", "%s $$": "'; DROP TABLE t; -- \\ \u0041", "a\\b": 1, "'); --": 2}
{"when '\"": "2024-01-02T00:00:00Z", "a\\b": "no ' number"}
JSON
"$millrace" run "$work/names.ini" --target.connection="host=127.0.0.1 port=$PGPORT user=postgres dbname=postgres" --metrics.interval=50ms <"$work/names.json" >"$work/log" 2>&1
is "$? $(value 'SELECT * FROM "S '\''""%s $$ \"."T ""x'\'' ; --"')" "0 2024-01-01 00:00:00+00|'; DROP TABLE t; -- \\ A|1|2" "hostile names and values from message to table" || diag <"$work/log"
is "$(value "SELECT source, stage FROM millrace.dead_letters")" "n'\"%s \$\$ \\ {x=\"y\"}|store" "and to the dead letters" || diag <"$work/log"

done_testing
