"""What things take: bytes on disk of an event, a group, a factor; private memory of sessions.  extension/OPERATIONS.md has the figures."""
import os, re, subprocess, threading, time
from pathlib import Path

from measure import ROOT, Session, report, run, sql

EVENTS = int(os.environ.get("ROWS", "1000000"))
START = "2024-06-01 00:00+00"


def anon(pid):
    """Private memory of a process."""
    return int(re.search(r"^RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1]) * 1024


class Watch:
    """The peak of it, seen every 5 ms."""

    def __init__(self, pid):
        self.pid, self.peak, self.over = pid, anon(pid), False
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.over:
            try:
                self.peak = max(self.peak, anon(self.pid))
            except (OSError, TypeError):
                break
            time.sleep(0.005)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over = True
        self.thread.join()


def number(text):
    return float(sql(text))


def size(relation):
    """With partitions, indexes and TOAST."""
    return number(f"SELECT coalesce(sum(pg_total_relation_size(relid)), 0) FROM pg_partition_tree('{relation}')") or number(f"SELECT pg_total_relation_size('{relation}')")


def wal(text):
    """Bytes of WAL that a statement writes."""
    before = sql("SELECT pg_current_wal_insert_lsn()")
    sql(text)
    return number(f"SELECT pg_current_wal_insert_lsn() - '{before}'")


def per(case, what, unit, n_bytes, n, peer=0.0):
    report(case, what, unit, n_bytes / n, peer)


def case_sizing(work):
    """Bytes of everything that grows, and memory of sessions; peer: the same data in an ordinary table or file"""
    sql(f"SET client_min_messages = warning; {(ROOT / 'docker/shop/schema.sql').read_text()}")
    sql(f"SELECT millrace.ensure_partitions(t, '{START}', timestamptz '{START}' + interval '1 day') FROM unnest('{{operations_raw,operations}}'::regclass[]) t")
    sql("CREATE TABLE plain (LIKE operations_raw)")
    sql(f"""CREATE FUNCTION shop_events(first int, last int) RETURNS SETOF operations_raw LANGUAGE sql AS $$
        SELECT i, timestamptz '{START}' + (i - 1) * (interval '24 hours' / {EVENTS}), CASE WHEN r % 100 < 80 THEN 'view' WHEN r % 100 < 93 THEN 'cart' ELSE 'purchase' END,
            1000000 + p, 2053013550000000000 + p % 40, CASE WHEN p % 5 > 0 THEN 'department' || p % 12 || '.kind' || p % 40 END, CASE WHEN p % 7 > 0 THEN 'brand' || p % 19 END,
            5 + p % 900 / 10.0, 500000000 + r % 50000, md5(((r % 50000) * 31 + i / 100000)::text)::uuid::text
        FROM generate_series(first, last) i, LATERAL (SELECT hashint4(i) & 2147483647 AS r) a, LATERAL (SELECT (1000 * pow(r % 9973 / 9973.0, 3))::int AS p) b $$""")

    # Events
    plain = sum(wal(f"INSERT INTO plain SELECT * FROM shop_events({i + 1}, {i + 10000})") for i in range(0, EVENTS, 10000))
    source = sum(wal(f"INSERT INTO operations_raw SELECT * FROM shop_events({i + 1}, {i + 10000})") for i in range(0, EVENTS, 10000))
    json = number("SELECT avg(octet_length(row_to_json(p)::text)) FROM plain p")
    per("sizing", "an event in operations_raw / as JSON", "bytes", size("operations_raw"), EVENTS, json)
    per("sizing", "the same in operations", "bytes", size("operations"), EVENTS, json)
    per("sizing", "WAL of an event: pipe, aggregate, both tables / one plain table", "bytes", source, EVENTS, plain / EVENTS)
    report("sizing", "a row of millrace.batches, pipe or aggregate in it", "bytes", number("SELECT avg(pg_column_size(b.*)) FROM millrace.batches b"), 0)

    # Groups
    groups = number("SELECT count(*) FROM operations_per_minute")
    appended = number("SELECT count(*) FROM operations_per_minute_delta") + number("SELECT count(*) FROM operations_per_minute_state")
    report("sizing", "groups of operations_per_minute; states stored for them before maintain / groups", "", appended, groups)
    before = size("operations_per_minute_state") + size("operations_per_minute_delta")
    sql("CALL millrace.maintain()")
    sql("VACUUM")
    sql("CREATE TABLE minutes AS SELECT event_type, department, brand, window_start, n, revenue FROM operations_per_minute; ALTER TABLE minutes ADD PRIMARY KEY (window_start, event_type, department, brand)")
    ordinary = size("minutes") / groups
    per("sizing", "a group, three texts, count and sum(numeric), before maintain / a row with a primary key", "bytes", before, groups, ordinary)
    per("sizing", "the same after maintain and VACUUM", "bytes", size("operations_per_minute_state") + size("operations_per_minute_delta"), groups, ordinary)
    hours = number("SELECT count(*) FROM operations_per_hour_state")
    per("sizing", "a window of the rollup per hour, when it is settled", "bytes", size("operations_per_hour_state"), hours, ordinary)
    keys = "event_type, department, brand, millrace.tumble(event_time, '1 minute') AS window_start"
    for aggregate in ("count(*)", "sum(price)", "avg(price)", "avg(price::float8)", "var_samp(price)", "var_samp(price::float8)", "max(price)", "corr(price::float8, revenue::float8)"):
        sql(f"SELECT millrace.create_continuous_aggregate('one', $$SELECT {keys}, {aggregate} AS x FROM operations GROUP BY 1, 2, 3, 4$$); ANALYZE one_state")
        per("sizing", f"a group of these three texts with {aggregate} alone", "bytes", size("one_state") + size("one_delta"), groups)
        sql("SELECT millrace.drop_continuous_aggregate('one')")
    sql("""SELECT millrace.create_continuous_aggregate('trend', $$SELECT brand, millrace.hop(event_time, '3 hours', '5 minutes') AS window_start, count(*) AS n FROM operations GROUP BY 1, 2$$);
        SELECT millrace.create_continuous_aggregate('visits', $$SELECT user_id, window_start, count(*) AS n
            FROM (SELECT *, millrace.session(event_time, '30 minutes') OVER (PARTITION BY user_id ORDER BY event_time) AS window_start FROM operations_raw) s GROUP BY 1, 2$$)""")
    per("sizing", "a window of 3 h sliding by 5 min, one text, count: a pane", "bytes", size("trend_state") + size("trend_delta"), number("SELECT count(*) FROM trend_state"))
    per("sizing", "a session, bigint, count", "bytes", size("visits_state") + size("visits_delta"), number("SELECT count(*) FROM visits"))
    sql("SELECT millrace.drop_continuous_aggregate(name) FROM unnest('{trend,visits}'::text[]) name")
    sql("""INSERT INTO millrace.dead_letters (source, topic, partition, "offset", key, payload, stage, sqlstate, reason)
        SELECT 'millrace-operations_raw', 'operations', i % 4, i, int8send(i), convert_to(row_to_json(p)::text, 'UTF8'), 'store', '22P02', 'invalid input syntax for type numeric: "x"' FROM shop_events(1, 10000) p, LATERAL (SELECT p.id AS i) i""")
    per("sizing", "a dead letter / its message", "bytes", size("millrace.dead_letters"), 10000, json)

    # Models.  Pairs, users, items: the peak of the training is measured in a session of its own.
    sql("SET client_min_messages = warning; CREATE TABLE ratings AS SELECT i % 100000 AS u, (20000 * pow((hashint8(i) & 1048575) / 1048576.0, 2))::bigint AS i, 1::real AS value FROM generate_series(1, 5000000::bigint) i")
    peaks = {}
    for n, rank in ((1000000, 64), (5000000, 16), (5000000, 64), (5000000, 128)):
        session = Session()
        began = anon(session.pid)
        with Watch(session.pid) as watch:
            session.run(f"SELECT millrace.train_als('m{rank}', 'SELECT u, i, value FROM ratings LIMIT {n}', rank => {rank}, iterations => 2)")
        session.close()
        users, items, pairs = map(float, sql(f"SELECT users, items, ratings FROM millrace.models WHERE name = 'm{rank}' AND active").split("|"))
        peaks[n, rank] = watch.peak - began, users, items, pairs
        report("sizing", f"peak of train_als, {n:,} rows, {pairs:,.0f} pairs, {users:,.0f} x {items:,.0f}, rank {rank} / factors, 8 bytes a pair", "MB", (watch.peak - began) / 1e6,
               ((users + items) * rank * 4 + pairs * 8) / 1e6)
    for rank in (16, 64, 128):
        _, users, items, pairs = peaks[5000000, rank]
        stored = number(f"SELECT sum(length(data)) FROM millrace.factors f JOIN millrace.models m ON m.name = f.model AND m.version = f.version AND m.active WHERE model = 'm{rank}'")
        report("sizing", f"stored factors, rank {rank} / 4 bytes a number", "bytes a user or item", stored / (users + items), rank * 4)
        file = number(f"SELECT size FROM pg_database d, millrace.model_version v JOIN millrace.model m ON m.name = v.model AND m.active = v.version, "
                      f"pg_stat_file('base/' || d.oid || '/pgsql_tmp_millrace.' || v.uuid) WHERE datname = current_database() AND m.name = 'm{rank}'")
        report("sizing", f"cache file, rank {rank} / 4 bytes a number", "bytes a user or item", file / (users + items), rank * 4)
    session = Session()
    session.run("SELECT 1")
    idle = anon(session.pid)
    session.run("SELECT count(*) FROM millrace.recommend_top_k('m64', 17, 10)")
    report("sizing", "private memory of a session that recommends, rank 64 / before", "MB", anon(session.pid) / 1e6, idle / 1e6)
    session.close()

    # What users have, and lists in the stream
    sql("""SET client_min_messages = warning;
        SELECT millrace.train_als('shop', 'SELECT user_id, product_id FROM operations_raw', rank => 32, iterations => 3); SELECT millrace.track_history('shop')""")
    sql("CALL millrace.maintain()")
    pairs = number("SET enable_hashagg = off; SELECT count(*) FROM (SELECT DISTINCT user_id, product_id FROM operations_raw) p")
    history = sql("SELECT target FROM millrace.streams WHERE kind = 'history'")
    per("sizing", "what users have, a pair", "bytes", size(history) + size(f"{history}_delta"), pairs)
    sql("SELECT millrace.create_scorer('recommended', 'operations_raw', 'shop', 'user_id', 'product_id')")
    sql(f"INSERT INTO operations_raw SELECT * FROM shop_events(1, 10000)")
    per("sizing", "a list of a scorer, k = 5", "bytes", size("recommended"), number("SELECT count(*) FROM recommended"))

    # k-means
    sql("CREATE TABLE points AS SELECT ARRAY(SELECT random() FROM generate_series(1, 32) WHERE i > 0) AS x FROM generate_series(1, 200000) i")
    session = Session()
    began = anon(session.pid)
    with Watch(session.pid) as watch:
        session.run("SELECT millrace.train_kmeans('clusters', 'SELECT x FROM points', 20)")
    session.close()
    report("sizing", "peak of train_kmeans, 200,000 x 32 / 8 bytes a number", "MB", (watch.peak - began) / 1e6, 200000 * 32 * 8 / 1e6)

    # Sessions, and the ingester
    sql("SELECT millrace.drop_scorer('recommended')")
    session = Session()
    session.run("SELECT 1")
    report("sizing", "private memory of a session: connected", "MB", anon(session.pid) / 1e6, 0)
    for n in (1000, 50000):
        with Watch(session.pid) as watch:
            session.run(f"INSERT INTO operations_raw SELECT * FROM shop_events(1, {n})")
        report("sizing", f"… that has written {n:,} events to pipe, aggregate and history: peak; afterwards", "MB", watch.peak / 1e6, anon(session.pid) / 1e6)
    session.close()
    (work / "shop.ini").write_text("[source]\ntype = stdin\nname = sizing\nformat = json\n[target]\ntable = operations_raw\nmaintain = 1s\n[batch]\nmax_age = 100ms\n")
    events = sql("SELECT row_to_json(e) FROM shop_events(1, 200000) e") + "\n"
    ingester = subprocess.Popen(["millrace", "run", str(work / "shop.ini")], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    sessions, lists = 0, threading.Thread(target=lambda: (ingester.stdin.write(events), time.sleep(3), ingester.stdin.close()))
    lists.start()
    with Watch(ingester.pid) as watch:
        while ingester.poll() is None:
            sessions = max(sessions, int(sql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'millrace%'")))
            time.sleep(0.02)
    lists.join()
    assert ingester.returncode == 0 and sessions, (ingester.returncode, sessions)
    report("sizing", "private memory of the ingester, stdin, 200,000 events", "MB", watch.peak / 1e6, 0)
    report("sizing", "its sessions on the server, most at one time", "", sessions, 0)
