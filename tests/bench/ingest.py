"""Cases of the ingester: Kafka into PostgreSQL beside psql's \\copy and Kafka Connect's JDBC sink, and how soon a message is a row."""
import csv, json, os, random, re, shutil, statistics, subprocess, threading, time, uuid
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from measure import ROOT, ROUNDS, Session, backends_cpu, beside, beside_psql, given, report, run, sql

BUILD = Path(os.environ.get("MILLRACE_CACHE", ROOT / "build"))
ROWS = int(os.environ.get("ROWS", "1000000"))
START = datetime(2024, 3, 1, tzinfo=timezone.utc)
DAYS = 7
CONNECT, DEBEZIUM = "3.9.1", "3.1.2.Final"  # releases of the peers
PARTITIONS = 4
FIELDS = {"id": "bigint", "event_time": "timestamptz NOT NULL", "event_type": "text", "product_id": "bigint", "category_id": "bigint",
          "category_code": "text", "brand": "text", "price": "numeric", "user_id": "bigint", "user_session": "text"}
# The same to Kafka Connect, which wants a schema in each message.
CONNECT_TYPES = {"bigint": {"type": "int64"}, "text": {"type": "string"}, "numeric": {"type": "double"},
                 "timestamptz NOT NULL": {"type": "string", "name": "io.debezium.time.ZonedTimestamp", "version": 1}}


def events(n, seed=3):
    """Events of a shop over a week, nearly in the order of their times; a third without category, a seventh without brand."""
    rng = random.Random(seed)
    categories = [f"{a}.{b}" for a in ("electronics", "appliances", "apparel", "furniture") for b in ("smartphone", "kitchen", "shoes", "audio", "table")]
    brands = ["samsung", "apple", "xiaomi", "huawei", "lg", "bosch", "sony", "philips"]
    products = [(1000000 + i, 2053013550000000000 + i * 7919 % 500, rng.choice(categories) if rng.random() > 0.32 else None,
                 rng.choice(brands) if rng.random() > 0.14 else None, rng.randrange(100, 200000) / 100) for i in range(20000)]
    sessions = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(50000)]
    kinds = ["view"] * 18 + ["cart", "purchase"]
    step = DAYS * 86400 / n
    for i in range(n):
        product, category, code, brand, price = products[rng.randrange(20000)]
        user = rng.randrange(50000)
        at = START + timedelta(seconds=int(max(i * step - rng.randrange(60), 0)))
        yield i, f"{at:%FT%TZ}", kinds[rng.randrange(20)], product, category, code, brand, price, 500000000 + user, sessions[user]


def write_events(work, n):
    """The same rows as JSON lines and as CSV, and some of them with a schema each; returns the bytes of a message."""
    schema = {"type": "struct", "optional": False, "fields": [{"field": name, "optional": True, **CONNECT_TYPES[kind]} for name, kind in FIELDS.items()]}
    prefix = json.dumps({"schema": schema}, separators=(",", ":"))[:-1]
    with open(work / "events.json", "w") as lines, open(work / "events.csv", "w", newline="") as table, open(work / "connect.json", "w") as connect:
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(FIELDS)
        for i, event in enumerate(events(n)):
            text = json.dumps(dict(zip(FIELDS, event)), separators=(",", ":"))
            lines.write(text + "\n")
            rows.writerow(event)
            if i < n // 2:
                connect.write(f'{prefix},"payload":{text}}}\n')
        return lines.tell() / n


@contextmanager
def broker(work, *settings):
    """Of its own for the case; yields where it listens."""
    lib = ROOT / "tests/lib/kafka"
    run(str(lib), "start", str(work / "kafka"), "log.flush.interval.messages=9223372036854775807", *settings)
    try:
        yield (work / "kafka/env").read_text().split("=", 1)[1].strip()
    finally:
        subprocess.run([lib, "stop", work / "kafka"], capture_output=True)


def make_table(name):
    sql(f"""SET client_min_messages = warning; CREATE TABLE {name} ({', '.join(f'{field} {kind}' for field, kind in FIELDS.items())}) PARTITION BY RANGE (event_time);
        SELECT millrace.create_source('{name}', 'event_time'); SELECT millrace.ensure_partitions('{name}', '{START}', '{START + timedelta(days=DAYS)}')""")


def write_ini(work, table, brokers, more=""):
    path = work / f"{table}.ini"
    path.write_text(f"[source]\ntype = kafka\nbrokers = {brokers}\ntopic = events\nname = {table}\n[target]\ntable = {table}\n{more}")
    return path


def threads_of(pid):
    """CPU seconds of each thread by its name."""
    seconds = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            name = (task / "comm").read_text().strip()
            seconds[task.name] = (name.split(":")[0] if name.startswith("rdk") else name, int((task / "schedstat").read_text().split()[0]) / 1e9)
        except OSError:
            pass
    return seconds


def watched(*command):
    """Runs a command; returns its wall-clock seconds, CPU seconds, resident bytes at most, CPU seconds by thread, and those of its backends.
    (Not ru_maxrss: it begins with what this program takes, which starts the command.)"""
    threads, before, peak = {}, backends_cpu(), 0
    start = time.monotonic()
    with open(os.devnull, "w") as null:
        process = subprocess.Popen(command, stdout=null, stderr=subprocess.PIPE, text=True)
        log = []
        reader = threading.Thread(target=lambda: log.extend(process.stderr))
        reader.start()
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            threads.update(threads_of(process.pid))
            with suppress(OSError):
                high = re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text(), re.M)
                peak = max(peak, int(high[1]) * 1024 if high else 0)
            time.sleep(0.02)
        took = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        reader.join()
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {''.join(log[-5:])}")
    by_name = {}
    for name, seconds in threads.values():
        by_name[name] = by_name.get(name, 0) + seconds
    return took, usage.ru_utime + usage.ru_stime, peak, by_name, backends_cpu() - before


def fetch_connect():
    """Kafka Connect and Debezium's JDBC sink, fetched once; returns the classpath and the folder of plugins."""
    folder = BUILD / "connect"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        for part, dependencies in {"libs": [("org.apache.kafka", "connect-runtime", CONNECT), ("org.apache.kafka", "connect-json", CONNECT),
                                            ("org.slf4j", "slf4j-reload4j", "1.7.36")],
                                   "plugins/jdbc": [("io.debezium", "debezium-connector-jdbc", DEBEZIUM)]}.items():
            (folder / part).mkdir(parents=True)
            pom = folder / "pom.xml"
            pom.write_text('<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion><groupId>millrace</groupId>'
                           '<artifactId>peer</artifactId><version>1</version><packaging>pom</packaging><dependencies>' +
                           "".join(f"<dependency><groupId>{g}</groupId><artifactId>{a}</artifactId><version>{v}</version></dependency>" for g, a, v in dependencies) +
                           "</dependencies></project>")
            run("mvn", "-B", "-q", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder / part}")
        for name in ("core", "databind", "annotations"):
            for jar in (folder / "plugins/jdbc").glob(f"jackson-{name}-*.jar"):
                jar.unlink()
        (folder / "complete").touch()
    beside("Kafka Connect", CONNECT, "Maven Central")
    beside("Debezium's JDBC sink", DEBEZIUM, "Maven Central")
    return f"{folder}/libs/*", folder / "plugins"


def connect_rate(work, brokers, n, full):
    """Rows per second of the JDBC sink with two tasks, over the last three quarters, and its CPU seconds a row; full: the bytes of all rows in the table, by which it is seen how far it is."""
    classpath, plugins = fetch_connect()
    sql("TRUNCATE events_connect")
    (work / "log4j.properties").write_text(f"log4j.rootLogger=WARN, file\nlog4j.appender.file=org.apache.log4j.FileAppender\nlog4j.appender.file.File={work}/connect.log\n"
                                           "log4j.appender.file.layout=org.apache.log4j.PatternLayout\nlog4j.appender.file.layout.ConversionPattern=%d %p %c %m%n\n")
    (work / "worker.properties").write_text(
        f"bootstrap.servers={brokers}\nkey.converter=org.apache.kafka.connect.json.JsonConverter\nkey.converter.schemas.enable=false\n"
        f"value.converter=org.apache.kafka.connect.json.JsonConverter\nvalue.converter.schemas.enable=true\noffset.storage.file.filename={work}/offsets-{time.time()}\n"
        f"plugin.path={plugins}\nlisteners=http://127.0.0.1:0\nconnector.client.config.override.policy=All\noffset.flush.interval.ms=5000\n")
    (work / "sink.properties").write_text(
        f"name=peer-{time.time()}\nconnector.class=io.debezium.connector.jdbc.JdbcSinkConnector\ntasks.max=2\ntopics=connect\n"
        f"connection.url=jdbc:postgresql://{os.environ['PGHOST']}:{os.environ['PGPORT']}/{os.environ['PGDATABASE']}?reWriteBatchedInserts=true\n"
        f"connection.username={os.environ['PGUSER']}\nconnection.password=none\ninsert.mode=insert\nprimary.key.mode=none\nschema.evolution=none\n"
        "collection.name.format=events_connect\nbatch.size=5000\nconsumer.override.max.poll.records=5000\nconsumer.override.auto.offset.reset=earliest\n"
        "consumer.override.fetch.min.bytes=1000000\nuse.time.zone=UTC\n")
    process = subprocess.Popen(["java", "-Xmx1g", f"-Dlog4j.configuration=file:{work}/log4j.properties", "org.apache.kafka.connect.cli.ConnectStandalone",
                                str(work / "worker.properties"), str(work / "sink.properties")],
                               env={**os.environ, "CLASSPATH": classpath}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    session = Session()

    def until(true):
        while not true():
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"the JDBC sink stored {sql('SELECT count(*) FROM events_connect')} of {n} rows: {(work / 'connect.log').read_text()[-2000:]}")
            time.sleep(0.2)
    try:
        deadline, rows, seen = time.monotonic() + 300, lambda: int(session.run("SELECT count(*) FROM events_connect")), []
        for share in (0.25, 0.97): # warm; nearly there
            until(lambda: int(session.run("SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree('events_connect')")) >= share * full)
            if share > 0.5:
                until(lambda: rows() >= n)
            seen.append((rows(), time.monotonic(), sum(seconds for _, seconds in threads_of(process.pid).values())))
        rows, took, cpu = (b - a for a, b in zip(*seen))
        return rows / took, cpu / rows
    finally:
        process.kill()
        process.wait()
        session.close()


def prepare(kind):
    """An empty table, "derived" with a pipe and an aggregate, read from the beginning."""
    sql(f"SET client_min_messages = warning; DROP TABLE IF EXISTS events_{kind} CASCADE; DELETE FROM millrace.ingest_offsets")
    make_table(f"events_{kind}")
    if kind == "derived":
        sql("SET client_min_messages = warning; DROP TABLE IF EXISTS bought")
        sql("""CREATE TABLE bought (event_time timestamptz, product_id bigint, brand text, price numeric, user_id bigint);
            SELECT millrace.create_pipe('bought', 'events_derived', 'INSERT INTO bought SELECT event_time, product_id, upper(brand), price, user_id FROM new_rows WHERE event_type = ''purchase''');
            SELECT millrace.create_continuous_aggregate('events_per_minute', $$SELECT event_type, millrace.tumble(event_time, '1 minute') AS window_start, count(*) AS n, sum(price) AS total
                FROM events_derived GROUP BY 1, 2$$)""")
    sql("CHECKPOINT")


def case_ingest(work):
    """Kafka, 4 partitions, into a table partitioned by day, exactly once: beside \\copy of the same rows and the JDBC sink"""
    n_bytes = write_events(work, ROWS)
    beside_psql()
    with broker(work) as brokers:
        for topic, file in (("events", "events.json"), ("connect", "connect.json")):
            run("millrace", "produce", str(work / file), f"--brokers={brokers}", f"--topic={topic}", "--create-topic", f"--partitions={PARTITIONS}", "--rate=max", "--once",
                "--kafka.sticky.partitioning.linger.ms=0")
        make_table("events_connect")
        columns = ", ".join(FIELDS)
        copy = ("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-c", f"\\copy events_copy ({columns}) FROM '{work}/events.csv' CSV HEADER")
        kinds = {"copy": copy, "plain": ("millrace", "run", str(write_ini(work, "events_plain", brokers)), "--once"),
                 "derived": ("millrace", "run", str(write_ini(work, "events_derived", brokers)), "--once")}
        figures, n, peers = {kind: [] for kind in kinds}, ROWS // 2, []
        for turn in range(ROUNDS + 1):
            if turn:
                full = int(sql("SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree('events_plain')")) * n // ROWS
                peers.append(connect_rate(work, brokers, n, full))
            for kind in list(kinds) if turn % 2 else reversed(kinds):
                prepare(kind)
                figures[kind].append(watched(*kinds[kind]))
                assert sql(f"SELECT count(*), count(DISTINCT id), sum(id) FROM events_{kind}") == f"{ROWS}|{ROWS}|{ROWS * (ROWS - 1) // 2}", f"events_{kind} is wrong"
        assert sql("SELECT count(*) FROM (SELECT * FROM events_plain EXCEPT ALL SELECT * FROM events_copy) d") == "0", "the rows are not those of \\copy"
        assert sql("SELECT sum(n) FROM events_per_minute") == str(ROWS), "the aggregate is wrong"
        assert sql("SELECT count(*) FROM bought") == sql("SELECT count(*) FROM events_copy WHERE event_type = 'purchase'"), "the pipe's table is wrong"
        figures = {kind: rounds[1:] for kind, rounds in figures.items()}
        median = lambda kind, i: statistics.median(figure[i] for figure in figures[kind])
        for kind, what in (("plain", "Kafka"), ("derived", "Kafka, with pipe and aggregate")):
            # The CPU ratio is of rows per CPU second of client and backend together.
            rates = lambda kind: (ROWS / median(kind, 0), ROWS / statistics.median(figure[1] + figure[4] for figure in figures[kind]))
            report("ingest", f"{what} / psql copy", f"rows/s, {n_bytes:.0f} bytes each", rates(kind), rates("copy"), "",
                   [b[0] / a[0] for a, b in zip(figures[kind], figures["copy"])])
        report("ingest", "CPU of the ingester", "us a message", median("plain", 1) * 1e6 / ROWS, 3)
        of = {thread: statistics.median(figure[3].get(thread, 0) for figure in figures["plain"]) * 1e6 / ROWS for thread in ("rdk", "reader", "writer", "millrace")}
        run("make", "-C", str(ROOT / "tests/bench"), "-f", "ingest_core.mk")
        decode, encode = (int(figure) / 1000 for figure in run(str(ROOT / "tests/bench/bin/ingest_core"), str(work / "events_plain.ini"), str(work / "events.json")).split())
        for part, us in (("librdkafka: network", of["rdk"]), ("decode", decode), ("encode", encode), ("rest of the reader: fetch, copies", of["reader"] - decode - encode),
                         ("send", of["writer"]), ("start, signals", of["millrace"])):
            report("ingest", f"of it {part}", "us a message", us, 3)
        report("ingest", "resident memory at most", "MiB", max(figure[2] for kind in ("plain", "derived") for figure in figures[kind]) / 2**20, 256)
        rate, cpu = (statistics.median(column) for column in zip(*peers))
        report("ingest", "Kafka / JDBC sink, two tasks, rewritten inserts of 5,000", "rows/s", ROWS / median("plain", 0), rate, "",
               [ROWS / figure[0] / peer[0] for figure, peer in zip(figures["plain"], peers)])
        report("ingest", "CPU of the ingester / of the JDBC sink", "us a message", median("plain", 1) * 1e6 / ROWS, cpu * 1e6)


def case_latency(work):
    """From produce to visible row, 1,000 messages a second, max_age = 20 ms"""
    n, given.rounds = 20000, 1
    with broker(work) as brokers:
        write_events(work, 20000)
        make_table("events_now")
        sql("CREATE INDEX ON events_now (id); CREATE TABLE seen (id bigint PRIMARY KEY, event_time timestamptz, at timestamptz)")
        run("millrace", "produce", str(work / "events.json"), f"--brokers={brokers}", "--topic=events", "--create-topic", f"--partitions={PARTITIONS}", "--count=1", "--rate=max",
            "--id=id", "--time=event_time", "--times=now")
        ingester = subprocess.Popen(["millrace", "run", str(write_ini(work, "events_now", brokers, "[batch]\nmax_age = 20ms\n")), "--log.level=warning"])
        try:
            deadline = time.monotonic() + 30
            while sql("SELECT count(*) FROM events_now") != "1":
                assert time.monotonic() < deadline, "the ingester stores nothing"
                time.sleep(0.1)
            reader = Session()
            producer = subprocess.Popen(["millrace", "produce", str(work / "events.json"), f"--brokers={brokers}", "--topic=events", f"--count={n}", "--rate=1000",
                                         "--id=id", "--first-id=2", "--time=event_time", "--times=now"], stderr=subprocess.DEVNULL)
            # Looks every millisecond what has become visible.
            reader.run(f"""DO $$ DECLARE n bigint := 0; more bigint; last bigint := 1; until timestamptz := clock_timestamp() + interval '2 minutes'; BEGIN
                LOOP
                    -- Partitions are not read in the order of the ids: those just behind the last one may still come.
                    WITH fresh AS (INSERT INTO seen SELECT id, event_time, clock_timestamp() FROM events_now e
                        WHERE id > greatest(last - 1000, 1) AND NOT EXISTS (SELECT FROM seen s WHERE s.id = e.id) RETURNING id)
                    SELECT count(*), greatest(max(id), last) INTO more, last FROM fresh;
                    n := n + more;
                    EXIT WHEN n >= {n} OR clock_timestamp() > until;
                    PERFORM pg_sleep(0.001);
                END LOOP; END $$""")
            producer.wait()
            reader.close()
        finally:
            ingester.terminate()
            ingester.wait()
        assert sql("SELECT count(*), count(DISTINCT id) FROM seen") == f"{n}|{n}", "not every message was seen once"
        # Without the first two seconds, in which the producer finds its broker.
        middle, most = (float(figure) for figure in sql("""SELECT extract(epoch FROM percentile_cont(0.5) WITHIN GROUP (ORDER BY at - event_time)) * 1000,
            extract(epoch FROM percentile_cont(0.99) WITHIN GROUP (ORDER BY at - event_time)) * 1000 FROM seen WHERE id > 2000""").split("|"))
        report("latency", "median from produce to visible row", "ms", middle, 50)
        report("latency", "99th percentile", "ms", most, 50)


def case_scatter(work):
    """Batches whose rows are of 305 days, and of one: the time to store a batch, by the ingester's own figures"""
    rng, n_batches = random.Random(5), 6
    sql("""SET client_min_messages = warning; CREATE TABLE scatter (id bigint, event_time timestamptz NOT NULL, kind text, price numeric) PARTITION BY RANGE (event_time);
        SELECT millrace.create_source('scatter', 'event_time'); SELECT millrace.ensure_partitions('scatter', '2024-03-01', '2024-12-30')""")
    for size in (10000, 50000, 200000):
        inis = {}
        for kind, days in (("many", 305), ("one", 1)):
            folder = work / f"{kind}{size}"
            folder.mkdir()
            for i in range(n_batches):
                with open(folder / f"{i}.csv", "w") as out:
                    out.write("id,event_time,kind,price\n")
                    out.writelines(f"{k},{START + timedelta(days=rng.randrange(days), seconds=rng.randrange(86400)):%F %T}+00,k{rng.randrange(20)},{rng.randrange(10000) / 100}\n" for k in range(size))
            inis[kind] = work / f"{kind}{size}.ini"
            inis[kind].write_text(f"[source]\ntype = directory\npath = {folder}\nmax_files_per_batch = 1\nname = scatter\n[target]\ntable = scatter\n[log]\nlevel = warning\n")
        figures = {"many": [], "one": []}
        for turn in range(ROUNDS + 1):
            for kind in list(inis) if turn % 2 else reversed(inis):
                sql("TRUNCATE scatter; DELETE FROM millrace.ingest_offsets; DELETE FROM millrace.ingest_metrics")
                backend = watched("millrace", "run", str(inis[kind]), "--once")[4]
                n, took = sql("""SELECT max(value) FILTER (WHERE metric = 'batches_total'), max(value) FILTER (WHERE metric = 'batch_seconds_sum')
                    FROM millrace.ingest_metrics""").split("|")
                assert int(n) == n_batches and sql("SELECT count(*) FROM scatter") == str(size * n_batches), f"{n} batches"
                figures[kind].append((float(took) / n_batches, backend / n_batches))
        many, one = (figures[kind][1:] for kind in ("many", "one"))
        median = lambda pairs: tuple(statistics.median(column) for column in zip(*pairs))
        report("scatter", f"{size} rows of 305 leaves / of one", "s a batch", median(many), median(one), "", [a[0] / b[0] for a, b in zip(many, one)])
