"""Cases beyond one process: several ingesters in one consumer group, and calls to a primary and its standby."""
import json, os, shutil, signal, statistics, subprocess, time
from contextlib import contextmanager, suppress

from ingest import FIELDS, ROWS, backends_cpu, broker, events, prepare
from measure import ROOT, ROUNDS, Session, given, point, process_cpu, report, run, server_settings, sql
from serving import Client, rounds_of, write_values

INGESTERS = (1, 2, 3, 4)
PARTITIONS = (4, 8)


# ---- several ingesters ----

def ingest_together(work, brokers, partitions, n):
    """n processes read the topic; from the first stored batch on: rows a second, and us of CPU a row of the ingesters, their backends and the broker, all in all."""
    prepare("derived")
    ini = work / "group.ini"
    ini.write_text(f"[source]\ntype = kafka\nbrokers = {brokers}\ntopic = events{partitions}\n[target]\ntable = events_derived\n[log]\nlevel = warning\n")
    broker_pid, looks = int((work / "kafka/pid").read_text()), Session()
    cpu = {"broker": process_cpu(broker_pid), "backends": backends_cpu()}
    log = open(work / "group.log", "w+")
    members = [subprocess.Popen(["millrace", "run", str(ini)], stderr=log) for _ in range(n)]
    try:
        first, deadline = None, time.monotonic() + 120
        while True:
            stored = int(looks.run("SELECT coalesce(sum(next_offset), 0) FROM millrace.ingest_offsets"))
            now = time.monotonic()
            if stored and first is None:
                first = now, stored
            if stored >= ROWS:
                break
            if now > deadline or any(member.poll() is not None for member in members):
                log.seek(0)
                raise RuntimeError(f"{stored} of {ROWS} rows are stored: {log.read()[-2000:]}")
            time.sleep(0.02)
        cpu["broker"] = process_cpu(broker_pid) - cpu["broker"]
        of_each = [process_cpu(member.pid) for member in members]
        cpu["ingesters"] = sum(of_each)
        # Two of four partitions against one, and more for the start.
        if min(of_each) < max(of_each) / 6:
            raise RuntimeError(f"the partitions were not shared: CPU seconds of the ingesters are {of_each}")
    finally:
        for member in members:
            member.send_signal(signal.SIGTERM)
        for member in members:
            member.wait()
        log.close()
    cpu["backends"] = backends_cpu() - cpu["backends"]
    looks.close() # after that: its CPU is of no backend of theirs
    got = sql("SELECT count(*), count(DISTINCT id), sum(id), (SELECT sum(n) FROM events_per_minute), (SELECT count(*) FROM bought) - count(*) FILTER (WHERE event_type = 'purchase') FROM events_derived")
    assert got == f"{ROWS}|{ROWS}|{ROWS * (ROWS - 1) // 2}|{ROWS}|0", f"{n} ingesters stored {got}"
    return (ROWS - first[1]) / (now - first[0]), {part: seconds * 1e6 / ROWS for part, seconds in cpu.items()}


def case_groups(work):
    """1 to 4 ingesters in one consumer group, topics of 4 and 8 partitions, into one table with a pipe and an aggregate"""
    with open(work / "events.json", "w") as out:
        out.writelines(json.dumps(dict(zip(FIELDS, event)), separators=(",", ":")) + "\n" for event in events(ROWS))
    # It waits a moment for the members of a new group, so that they divide its partitions once.
    with broker(work, "group.initial.rebalance.delay.ms=2000") as brokers:
        for partitions in PARTITIONS:
            run("millrace", "produce", str(work / "events.json"), f"--brokers={brokers}", f"--topic=events{partitions}", "--create-topic", f"--partitions={partitions}", "--rate=max", "--once",
                "--kafka.sticky.partitioning.linger.ms=0")
        (work / "events.json").unlink()
        kinds = [(partitions, n) for partitions in PARTITIONS for n in INGESTERS]
        figures = {kind: [] for kind in kinds}
        ingest_together(work, brokers, *kinds[0])
        for turn in range(ROUNDS):
            for kind in kinds if turn % 2 else reversed(kinds):
                figures[kind].append(ingest_together(work, brokers, *kind))
    rate = {kind: statistics.median(figure[0] for figure in rounds) for kind, rounds in figures.items()}
    cpu = {kind: {part: statistics.median(figure[1][part] for figure in rounds) for part in ("ingesters", "backends", "broker")} for kind, rounds in figures.items()}
    for partitions, n in kinds:
        point("rows by ingesters", f"{partitions} partitions", n, "ingesters", rate[partitions, n], "rows/s")
        for part, us in cpu[partitions, n].items():
            point("CPU by ingesters", f"{part}, {partitions} partitions", n, "ingesters", us, "us a row")
        if n > 1:
            one = [figure[0] for figure in figures[partitions, 1]]
            report("groups", f"{n} ingesters / one, {partitions} partitions", "rows/s", rate[partitions, n], rate[partitions, 1], "",
                   [figure[0] / peer for figure, peer in zip(figures[partitions, n], one)])
    for n in INGESTERS:
        of = cpu[PARTITIONS[0], n]
        report("groups", f"processors busy with {n}, of those there are", "ingesters, backends, broker", sum(of.values()) * rate[PARTITIONS[0], n] / 1e6, os.cpu_count())
    one, most = (cpu[PARTITIONS[0], n] for n in (INGESTERS[0], INGESTERS[-1]))
    for part in one:
        report("groups", f"CPU of the {part}, {INGESTERS[-1]} ingesters / one", "us a row", most[part], one[part])


# ---- a standby ----

SERVED = 5000, 26744, 64, 150  # users, items, rank, items of a user


def as_postgres(*command):
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command] if os.geteuid() == 0 else list(command)


@contextmanager
def standby(work):
    """A physical replica of the server; yields the environment that leads there."""
    lib, folder = ROOT / "tests/lib/cluster", work / "standby"
    folder.mkdir()
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    try:
        run(*as_postgres("pg_basebackup", "-U", os.environ["PGUSER"], "-D", str(folder / "data"), "-R", "-c", "fast", "--no-sync"), cwd="/")
        port = run("python3", "-c", "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])").strip()
        with open(folder / "data/postgresql.auto.conf", "a") as conf:
            conf.write(f"port = {port}\n")
        run(str(lib), "again", str(folder))
        yield {"PGPORT": port}
    finally:
        subprocess.run([lib, "stop", folder, "immediate"], capture_output=True)


def there(environment, text):
    return run("psql", "-AtXq", "-v", "ON_ERROR_STOP=1", "-c", text, env={**os.environ, **environment}).strip()


def case_replicas(work):
    """recommend_top_k from a primary, and from it and a standby of it"""
    work.chmod(0o755)
    users, items, rank, each = SERVED
    sql(f"""SET client_min_messages = warning; SELECT setseed(0.5);
        CREATE TABLE has AS SELECT u, (random() * {items - 1})::int AS i FROM generate_series(1, {users}) u, generate_series(1, {each});
        CREATE TABLE factors_of AS SELECT side, id, ARRAY(SELECT (random() - 0.5)::real FROM generate_series(1, {rank}) WHERE id IS NOT NULL) AS factor
            FROM (SELECT 'user', generate_series(1, {users}) UNION ALL SELECT 'item', generate_series(0, {items - 1})) s (side, id);
        CREATE INDEX ON has (u); ANALYZE has""")
    imported = f"""SET client_min_messages = warning; SELECT version FROM millrace.import_als('replicated', 'SELECT id, factor FROM factors_of WHERE side = ''user''',
        'SELECT id, factor FROM factors_of WHERE side = ''item''', 'SELECT u, i FROM has')"""
    sql(imported)
    sql("SELECT millrace.track_history('replicated')")
    sql("VACUUM ANALYZE")
    asked = write_values(work / "users", range(1, users + 1))
    statement = "SELECT item_id FROM millrace.recommend_top_k('replicated', $1, 10)"
    with standby(work) as replica:
        there(replica, "SET client_min_messages = warning; SELECT millrace.warm()")
        clients = {}
        try:
            for name, environment in (("primary", {}), ("standby", replica)):
                for i in range(2):
                    clients[name, i] = Client(statement, str(asked), i * users // 2, environment)
            sample = {name: clients[name, 0].answers(str(work / f"of-{name}")) for name in ("primary", "standby")}
            assert sample["primary"] == sample["standby"] and len(sample["primary"]) == users, "the standby's lists are others"
            kinds = {"primary": [clients["primary", 0]], "standby": [clients["standby", 0]], "two": [clients["primary", 0], clients["primary", 1]],
                     "both": [clients["primary", 0], clients["standby", 0]], "four": list(clients.values())}
            figures = rounds_of(kinds)
        finally:
            for client in clients.values():
                with suppress(OSError):
                    client.close()
        rate = lambda kind: statistics.median(figure.rate for figure in figures[kind])
        ratios = lambda a, b: [x.rate / y.rate for x, y in zip(figures[a], figures[b])]
        cost = lambda kind: statistics.median(figure.median[1] for figure in figures[kind])
        report("replicas", "a client each of primary and standby / one of the primary", "calls/s", rate("both"), rate("primary"), "", ratios("both", "primary"))
        report("replicas", "a client each of primary and standby / two of the primary", "calls/s", rate("both"), rate("two"), "", ratios("both", "two"))
        report("replicas", "two clients of each / two of the primary, on the same processors", "calls/s", rate("four"), rate("two"), "", ratios("four", "two"))
        report("replicas", "CPU of a call: standby / primary, alone", "ms", cost("standby"), cost("primary"), "", [a.median[1] / b.median[1] for a, b in zip(figures["standby"], figures["primary"])])
        # A version that the primary begins to serve: when the standby has it, and the first call, which makes its cache file
        switched = []
        writer, looks = Session(), Session(replica)
        for _ in range(ROUNDS):
            version = writer.run(imported)
            start = time.monotonic()
            while looks.run("SELECT active FROM millrace.model WHERE name = 'replicated'") != version:
                assert time.monotonic() < start + 30, "the standby does not follow"
            seen = time.monotonic()
            there(replica, "SET client_min_messages = warning; SELECT count(*) FROM millrace.recommend_top_k('replicated', 1)")
            switched.append(((seen - start) * 1e3, (time.monotonic() - seen) * 1e3))
        looks.close()
        writer.close()
        for i, what in enumerate(("from a version's commit until the standby has it", "the first call there, with a new connection, unless warm() came before it")):
            report("replicas", what, "ms", statistics.median(figure[i] for figure in switched), float("nan"))
    sql("SELECT millrace.drop_model('replicated'); DROP TABLE has, factors_of")


# ---- ten million items ----

MANY, MANY_USERS = int(os.environ.get("ITEMS", "10000000")), 20000


def stream_factors(table, rows, sigma):
    """A table of (id, factor), without a file in between."""
    python = run(str(ROOT / "tests/lib/venv"), "bench-venv", str(ROOT / "tests/bench/requirements.txt")).strip() + "/bin/python"
    sql(f"CREATE UNLOGGED TABLE {table} (id bigint, factor real[]); ALTER TABLE {table} ALTER factor SET STORAGE PLAIN")
    made = subprocess.Popen([python, "-B", str(ROOT / "tests/bench/stream_factors.py"), str(rows), str(SERVED[2]), str(sigma)], stdout=subprocess.PIPE)
    run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-c", f"\\copy {table} FROM STDIN BINARY", stdin=made.stdout)
    if made.wait():
        raise RuntimeError(f"the factors of {table} cannot be made")


def case_many_items(work):
    """Ten million items of rank 64: import, what is stored, recommend_top_k of all, of candidates, and lists made at once"""
    given.rounds = 1
    with server_settings(max_wal_size="8GB"):
        many_items(work)


def many_items(work):
    stream_factors("many_users", MANY_USERS, 0)
    asked = write_values(work / "users", range(1000))
    for sigma, what in ((0, "normal factors"), (0.5, "log-normal norms")):
        stream_factors("many_items", MANY, sigma)
        start = time.monotonic()
        sql(f"SET client_min_messages = warning; SELECT millrace.version(); SET millrace.max_memory = '{MANY // 1000000 + 4}GB'; SELECT version FROM millrace.import_als('many', 'many_users', 'many_items')")
        took = time.monotonic() - start
        sql("DROP TABLE many_items; SELECT millrace.prune('many', 1)")
        asks = "SELECT item_id FROM millrace.recommend_top_k('many', $1::bigint, 10{})"
        client = Client(asks.format(""), str(asked))
        some = Client(asks.format(f", candidates => 'SELECT n * 104729 % {MANY} FROM generate_series(1, 10000) n'"), str(asked))
        try:
            figures = rounds_of({"all": [client], "some": [some]})
        finally:
            client.close()
            some.close()
        for kind, which_items in (("all", "all of them"), ("some", "10,000 candidates")):
            for i, which in enumerate(("median", "CPU")):
                report("many_items", f"{MANY:,} items, {what}, {which_items}: a call, {which}", "ms", statistics.median(figure.median[i] for figure in figures[kind]), float("nan"))
        if sigma == 0:
            report("many_items", f"{MANY:,} items, import_als", "s", took, float("nan"))
            report("many_items", f"{MANY:,} items, stored factors / 4 bytes a number", "bytes a user or item", int(sql("SELECT sum(length(data)) FROM millrace.factors WHERE model = 'many'")) / (MANY + MANY_USERS), 4 * SERVED[2])
            report("many_items", f"{MANY:,} items, cache file / 4 bytes a number", "bytes an item", int(sql("SELECT millrace.warm('many')")) / MANY, 4 * SERVED[2])
        else:
            start = time.monotonic()
            n = int(sql("SELECT count(*) FROM millrace.recommend_top_k_for('many', 'SELECT id FROM generate_series(0, 4999) id', 10)"))
            assert n == 50000, f"{n} rows for 5,000 users"
            report("many_items", f"{MANY:,} items, {what}: lists of 10, 5,000 users at once", "users a second and processor", 5000 / (time.monotonic() - start) / os.cpu_count(), float("nan"))
        sql("SELECT millrace.drop_model('many')")
        sql("VACUUM millrace.factors")
    sql("DROP TABLE many_users")
