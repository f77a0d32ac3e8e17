"""A simulated week of the shop (docker/shop), event time compressed: does anything grow that should not?  A day before it makes all
that a day keeps: raw rows, minutes, lists, a model."""
import os, random, statistics, threading, time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from measure import ROOT, Session, given, point, report, run, server_settings, sql
from sizing import anon, number

RATE = float(os.environ.get("WEEK_RATE", "10")) # events a second of event time
DAYS = max(int(os.environ.get("WEEK_DAYS", "7")), 3)
STEP = int(os.environ.get("WEEK_BATCH", "15" if RATE > 100 else "60")) # seconds of event time in a batch
START = datetime(2024, 3, 4, tzinfo=timezone.utc)
DAY = 86400
MAINTAIN = 300
TRAINED = 6 * 3600 # when the model comes
USERS, PRODUCTS = 20000, 1000


def bodies(n):
    """What follows id and time in a line of CSV."""
    rng = random.Random(7)
    products = [(1000000 + p, 2053013550000000000 + p % 40, f"department{p % 12}.kind{p % 40}" if p % 5 else "", f"brand{p % 19}" if p % 7 else "", f"{5 + p % 900 / 10:.2f}") for p in range(PRODUCTS)]
    lines = []
    for _ in range(n):
        user, kind = int(USERS * rng.random() ** 2), rng.random()
        product, category, code, brand, price = products[int(PRODUCTS * rng.random() ** 3)]
        kind = "view" if kind < 0.8 else "cart" if kind < 0.93 else "purchase"
        lines.append(f",{kind},{product},{category},{code},{brand},{price},{500000000 + user},{user:08x}-0000-4000-8000-{user * 7919:012x}\n")
    return lines


class Events:
    """Files of the events of a batch each, the next of which is written while one is stored."""

    def __init__(self, work):
        self.work, self.lines, self.rng, self.id = work, bodies(200000), random.Random(11), 0
        self.thread = None

    def write(self, number_):
        n = round((number_ + 1) * STEP * RATE) - round(number_ * STEP * RATE)
        start = START + timedelta(seconds=number_ * STEP)
        midnight = start.replace(hour=0, minute=0, second=0)
        seconds = [f"{start + timedelta(seconds=s):%F %T}+00" for s in range(STEP)]
        first = self.rng.randrange(len(self.lines) - n) if n < len(self.lines) else 0
        out = []
        for i in range(n):
            self.id += 1
            at = seconds[i * STEP // n]
            if self.id % 500 == 0: # late by up to half an hour
                at = f"{max(midnight, start - timedelta(seconds=180 + self.rng.randrange(1620))):%F %T}+00"
            out.append(f"{self.id},{at}{self.lines[(first + i) % len(self.lines)]}")
        (self.work / f"batch{number_ % 2}.csv").write_text("".join(out))

    def next(self, number_):
        """The file of this batch; that of the next is begun."""
        if self.thread is None:
            self.write(number_)
        else:
            self.thread.join()
        self.thread = threading.Thread(target=self.write, args=(number_ + 1,))
        self.thread.start()
        return self.work / f"batch{number_ % 2}.csv"

    def close(self):
        self.thread.join()


class Upkeep(threading.Thread):
    """What an operator schedules, at times of the events, in a session of its own: a run waits for the one before, and what was missed runs once."""

    def __init__(self):
        super().__init__()
        self.now, self.over, self.error, self.has_model, self.runs, self.took = 0, False, None, False, 0, {"maintain": [], "reading": [], "recommend": []}
        self.changed = threading.Condition()
        self.session = Session()
        self.session.run("SET client_min_messages = error")

    def tell(self, now):
        with self.changed:
            self.now = now
            self.changed.notify()
        if self.error:
            raise self.error

    def run(self):
        try:
            due = {"maintain": MAINTAIN, "partitions": 600, "reading": 900, "lists": 6 * 3600, "model": TRAINED, "retrain": DAY + 3 * 3600}
            every = {"maintain": MAINTAIN, "partitions": DAY, "reading": 900, "lists": 6 * 3600, "model": 10 ** 9, "retrain": DAY}
            while True:
                with self.changed:
                    while not self.over and self.now < min(due.values()):
                        self.changed.wait()
                    if self.over:
                        return
                    now = self.now
                for job in sorted(due, key=due.get):
                    if due[job] <= now:
                        getattr(self, "do_" + job)(now)
                        due[job] += every[job] * ((now - due[job]) // every[job] + 1)
        except Exception as error:
            self.error = error

    def timed(self, what, statement):
        self.took[what].append(self.session.timed(statement)[0] * 1000)

    def do_maintain(self, now):
        self.timed("maintain", "CALL millrace.maintain()")
        self.runs += 1

    def do_partitions(self, now):
        """Of tomorrow; those of the day before yesterday go, and maintain runs once more, as the ingester does."""
        day = now // DAY
        for table in ("operations_raw", "operations"):
            self.session.run(f"SELECT millrace.ensure_partitions('{table}', '{START}'::timestamptz + interval '{day} days', '{START}'::timestamptz + interval '{day + 1.5} days')")
            if day >= 2:
                self.session.run(f"DROP TABLE {leaf(table, day - 2)}")
        if day >= 2:
            self.session.run("CALL millrace.maintain()")

    def do_reading(self, now):
        end = START + timedelta(seconds=now)
        self.timed("reading", f"""SELECT coalesce(department, 'all') AS department, sum(n) FILTER (WHERE event_type = 'view') AS views, sum(n) FILTER (WHERE event_type = 'purchase') AS purchases, sum(revenue) AS revenue
            FROM operations_per_minute WHERE window_start > '{end - timedelta(hours=1)}' GROUP BY ROLLUP (department) ORDER BY revenue DESC, department NULLS FIRST LIMIT 7""")
        if self.has_model:
            self.timed("recommend", f"SELECT * FROM millrace.recommend_top_k('shop', {500000000 + now % USERS}, 5)")

    def do_lists(self, now):
        if self.has_model:
            self.session.run(f"DELETE FROM recommended WHERE event_time < '{START + timedelta(seconds=now - DAY // 2)}'")

    def do_model(self, now):
        run("psql", "-Xq", "-f", str(ROOT / "docker/shop/model.sql"))
        self.has_model = True

    def do_retrain(self, now):
        self.session.run("SELECT version FROM millrace.retrain('shop')")
        self.session.run("SELECT millrace.prune('shop', 2)")

    def close(self):
        with self.changed:
            self.over = True
            self.changed.notify()
        self.join()
        self.session.close()
        if self.error:
            raise self.error


def leaf(table, day):
    return f"{table}_{START + timedelta(days=day):%Y%m%d}"


# What grows with the windows or lists that are kept for ever, as it should: the rows that a day adds are compared.
KEPT = ("operations_per_hour_state", "millrace.alert_row", "millrace.training_iteration")


def sample():
    """{table: (rows, bytes, dead rows)} of all that Millrace keeps; catalogs and raw rows as a whole."""
    tables = {}
    names = sql("""SELECT c.oid::regclass, c.relpages FROM pg_class c WHERE c.relkind IN ('r', 'm') AND NOT c.relispartition
        AND (c.relnamespace = 'millrace'::regnamespace OR c.relnamespace = 'public'::regnamespace) ORDER BY 1""")
    for line in names.splitlines():
        name = line.split("|")[0]
        rows, size, dead = sql(f"SELECT (SELECT count(*) FROM {name}), pg_total_relation_size('{name}'), (SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = '{name}'::regclass)").split("|")
        tables[name] = (int(rows), int(size), int(dead or 0))
    tables["pg_catalog"] = tuple(map(int, sql("""SELECT (SELECT count(*) FROM pg_class), sum(pg_total_relation_size(c.oid)), (SELECT sum(n_dead_tup) FROM pg_stat_sys_tables)
        FROM pg_class c WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace""").split("|")))
    tables["pg_class"] = tuple(map(int, sql("SELECT count(*), pg_total_relation_size('pg_class'), (SELECT n_dead_tup FROM pg_stat_sys_tables WHERE relname = 'pg_class') FROM pg_class").split("|")))
    for source in ("operations_raw", "operations"):
        tables[source] = (0, int(number(f"SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('{source}')")), 0)
    return tables


def draw(halves):
    """Each half day as points; of tables those that come to more than 256 kB."""
    for i, half in enumerate(halves):
        day = (i + 1) / 2 - 1 # 0: the week begins
        for name, (rows, size, dead) in half["tables"].items():
            if max(h["tables"].get(name, (0, 0, 0))[1] for h in halves) > 2 ** 18:
                point("week: size", name, day, "days", size / 1e6, "MB")
        point("week: dead rows", "of all tables", day, "days", sum(table[2] for table in half["tables"].values()), "rows")
        for what in ("batch, median", "batch, 99th percentile", "CPU of a batch, median", "CPU of a batch, 99th percentile", "reading", "recommend", "maintain"):
            if half[what] == half[what]:
                point("week: time", what, day, "days", half[what], "ms")
        point("week: memory", "writing backend", day, "days", half["memory"], "MB")
        point("week: memory", "maintaining backend", day, "days", half["upkeep"], "MB")
        point("week: WAL", "an event", day, "days", half["wal"] / (RATE * DAY / 2), "bytes")


def simulate(work):
    """The half days, each with its figures."""
    schema = (ROOT / "docker/shop/schema.sql").read_text()
    assert "retain => '7 days'" in schema
    sql("SET client_min_messages = warning; " + schema.replace("retain => '7 days'", "retain => '1 day'").replace("'1 day', retention => '90 days'", "'1 day'"))
    for table in ("operations_raw", "operations"):
        sql(f"SELECT millrace.ensure_partitions('{table}', '{START}', timestamptz '{START}' + interval '1.5 days')")
    writer, upkeep, events = Session(), Upkeep(), Events(work)
    upkeep.start()
    halves, times, began = [], [], time.monotonic()
    wal, runs = number("SELECT pg_current_wal_insert_lsn() - '0/0'"), 0
    per_half = DAY // 2 // STEP
    try:
        for i in range((DAYS + 1) * 2 * per_half):
            file = events.next(i)
            times.append(writer.timed(f"COPY {leaf('operations_raw', i * STEP // DAY)} FROM '{file}' CSV"))
            upkeep.tell((i + 1) * STEP)
            if (i + 1) % per_half:
                continue
            tables = sample()
            end = number("SELECT pg_current_wal_insert_lsn() - '0/0'")
            wall, cpu = (sorted(t[k] * 1000 for t in times) for k in (0, 1))
            half = {"tables": tables, "wal": end - wal, "memory": anon(writer.pid) / 1e6, "upkeep": anon(upkeep.session.pid) / 1e6,
                    "batch, median": statistics.median(wall), "batch, 99th percentile": wall[len(wall) * 99 // 100],
                    "CPU of a batch, median": statistics.median(cpu), "CPU of a batch, 99th percentile": cpu[len(cpu) * 99 // 100], "CPU of a batch, mean": statistics.mean(cpu),
                    **{what: statistics.median(took) if took else float("nan") for what, took in upkeep.took.items()}}
            halves.append(half)
            day = len(halves) / 2 - 1
            print(f"  day {day}: {time.monotonic() - began:.0f} s, {len(times)} batches of {half['batch, median']:.1f} ms, CPU {half['CPU of a batch, median']:.1f} ms;"
                  f" maintain {upkeep.runs - runs} times, {half['maintain']:.0f} ms", flush=True)
            wal, runs, times = number("SELECT pg_current_wal_insert_lsn() - '0/0'"), upkeep.runs, []
            for took in upkeep.took.values():
                took.clear()
    finally:
        events.close()
        upkeep.close()
        writer.close()
    return halves, time.monotonic() - began


def judge(halves, took):
    """Is all there, and is the last day as the second?"""
    draw(halves)
    n = round((DAYS + 1) * DAY * RATE)
    hours = number("SELECT sum(n) FROM operations_per_hour")
    print(f"  {n:,} events; {n / took:,.0f} events/s", flush=True)
    report("week", "events a second of event time / 1,000", "events/s", RATE, 1000)
    report("week", "events that are stored a second of the clock", "events/s", n / took, float("nan"))
    assert hours == n, f"the hours hold {hours:.0f} of {n} events"
    assert sql("SELECT count(*) FROM millrace.verify('operations_per_minute') WHERE reason = 'defect'") == "0", "operations_per_minute is wrong"
    # The mean of both halves of a day.
    second, last = halves[4:6], halves[-2:]
    mean = lambda day, figure: statistics.mean(figure(half) for half in day)

    def compare(what, unit, figure, target="<= 1.1"):
        report("week", f"{what}, last day / second day", unit, mean(last, figure), mean(second, figure), target)
    compare("median time of a batch", "ms", lambda half: half["batch, median"])
    compare("99th percentile of the time of a batch", "ms", lambda half: half["batch, 99th percentile"])
    compare("median CPU of a batch", "ms", lambda half: half["CPU of a batch, median"])
    compare("99th percentile of the CPU of a batch", "ms", lambda half: half["CPU of a batch, 99th percentile"])
    compare("reading the last hour of minutes", "ms", lambda half: half["reading"])
    compare("recommend_top_k", "ms", lambda half: half["recommend"])
    compare("maintain", "ms", lambda half: half["maintain"])
    compare("private memory of the writing backend", "MB", lambda half: half["memory"])
    compare("private memory of the maintaining backend", "MB", lambda half: half["upkeep"])
    compare("WAL of an event", "bytes", lambda half: half["wal"] / (RATE * DAY / 2), "") # with pages that are whole after a checkpoint, which goes by the clock
    for name in halves[-1]["tables"]:
        if name in KEPT:
            added = [halves[at]["tables"][name][0] - halves[at - 2]["tables"].get(name, (0,))[0] for at in (-1, 5)]
            if added[1] > 0:
                report("week", f"rows that a day adds to {name}, last day / second day", "rows", *added, "<= 1.1")
            continue
        for at, unit, least in ((1, "bytes", 2 ** 18), (0, "rows", 1000)):
            figure = lambda half: half["tables"].get(name, (0, 0, 0))[at]
            if max(mean(last, figure), mean(second, figure)) >= least:
                compare(f"{unit} of {name}", unit, figure)
    compare("dead rows of all these tables, which come and go", "rows", lambda half: sum(table[2] for table in half["tables"].values()), "")


def case_week(work):
    """A week of the shop at WEEK_RATE events a second of event time (10; 1000 are 605 M events): the last day beside the second"""
    work.chmod(0o755)
    # As a server has it that is in use; a second is more than an hour of event time.
    keep = min(10000, DAY // STEP * 2 // 3) # so that a day fills millrace.batches
    sql(f"ALTER DATABASE {os.environ['PGDATABASE']} SET millrace.keep_batches = {keep}")
    given.rounds = 1
    with server_settings(autovacuum="on", autovacuum_naptime="1s", autovacuum_vacuum_cost_delay="0"):
        judge(*simulate(work))
