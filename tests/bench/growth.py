"""Growth curves of streams: time and memory against rows, groups, aggregates on one source, writers, partitions."""
import os, queue, statistics, threading, time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from measure import ROUNDS, Session, point, report, seconds, sql
from sizing import Watch, anon, number

EVENTS = int(os.environ.get("EVENTS", "100000000"))
START = datetime(2024, 1, 1, tzinfo=timezone.utc)
BATCH = 10000
DAY = 1000000 # events
COLUMNS = "(at timestamptz NOT NULL, action text, u int)"
SERIAL = "SET max_parallel_workers_per_gather = 0"


def median(values):
    return statistics.median(values)


def human(n):
    """100000000 is 100 M."""
    for unit, size in (("M", 10 ** 6), ("k", 10 ** 3)):
        if n >= size:
            return f"{n / size:g} {unit}"
    return f"{n:g}"


def leaf(table, day):
    return f"{table}_{START + timedelta(days=day):%Y%m%d}"


def aggregate(name, source, keys="action", window="1 minute", options=""):
    return (f"SELECT millrace.create_continuous_aggregate('{name}', $$SELECT {keys}, millrace.tumble(at, '{window}') AS window_start, count(*) AS n, sum(u) AS total"
            f" FROM {source} GROUP BY {keys}, window_start$$ {options})")


def create(table, partitions, *statements):
    sql(f"SET client_min_messages = warning; DROP TABLE IF EXISTS {table} CASCADE; CREATE TABLE {table} {COLUMNS} PARTITION BY RANGE (at);"
        f"SELECT millrace.create_source('{table}', 'at', '1 day');"
        f"SELECT millrace.ensure_partitions('{table}', '{START}', timestamptz '{START}' + ({partitions} - 0.5) * interval '1 day');" + ";".join(statements))


def drop(*tables):
    for table in tables:
        sql(f"SET client_min_messages = warning; DROP TABLE IF EXISTS {table} CASCADE")
    sql("CHECKPOINT")


def several(n, statements):
    """n sessions take statements from one queue until there are no more; seconds, CPU seconds of their backends."""
    todo, errors = queue.SimpleQueue(), []
    for statement in statements:
        todo.put(statement)
    sessions = [Session() for _ in range(n)]
    for session in sessions:
        session.run("SELECT 1")
    before = [session.cpu() for session in sessions]

    def work(session):
        try:
            while True:
                session.run(todo.get_nowait())
        except queue.Empty:
            pass
        except Exception as error:
            errors.append(error)
    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]

    def all_of_them():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    took = seconds(all_of_them)
    cpu = sum(session.cpu() - b for session, b in zip(sessions, before))
    for session in sessions:
        session.close()
    if errors:
        raise errors[0]
    return took, cpu


def write_csv(path, n, at, action=lambda j: f"a{j % 10}", u=lambda j: j * 7919 % 100000):
    with open(path, "w") as out:
        out.writelines(f"{at(j):%F %T}+00,{action(j)},{u(j)}\n" for j in range(n))
    return path


def flat(case, what, unit, figures, target):
    """The last figure over the first: {x: figures of the rounds}."""
    first, last = (figures[x] for x in (min(figures), max(figures)))
    report(case, what, unit, median(last), median(first), target, [a / b for a, b in zip(last, first)])


def case_grow_events(work):
    """1, 10, 100 M rows (EVENTS) in day partitions of a million with an aggregate of minutes: what a batch of 10,000 and readings cost then"""
    work.chmod(0o755)
    sizes = [n for n in (10 ** 6, 10 ** 7, 10 ** 8, 10 ** 9) if n <= EVENTS]
    tables = {n: f"events_{human(n).replace(' ', '').lower()}" for n in sizes}
    for n, table in tables.items():
        days = n // DAY
        create(table, days + 1, aggregate(f"{table}_counts", table, options=", watermark => '3 hours'"))
        # By the hour, and nearly in order: two sessions are an hour apart.
        hour = DAY // 24
        statements = []
        for day in range(days):
            for h in range(24):
                first, last = h * DAY // 24, (h + 1) * DAY // 24 - 1
                statements.append(f"INSERT INTO {leaf(table, day)} SELECT timestamptz '{START + timedelta(days=day)}' + i * interval '86.4 ms', a[i % 10 + 1], i % 1000"
                                  f" FROM (SELECT '{{a0,a1,a2,a3,a4,a5,a6,a7,a8,a9}}'::text[] a) a, generate_series({first}, {last}) i")
        took, cpu = several(2, statements)
        point("grow_events: filling", "rows a second, two sessions", n, "rows in the source", n / took, "rows/s")
        point("grow_events: filling", "rows a CPU second", n, "rows in the source", n / cpu, "rows/s")
        sql(f"CALL millrace.maintain('{table}_counts')")
        sql(f"VACUUM ANALYZE {table}_counts_state, {table}_counts_delta")
        assert sql(f"SELECT sum(n) FROM {table}_counts") == str(n), f"{table}_counts is wrong"
        state = number(f"SELECT pg_total_relation_size('{table}_counts_state') + pg_total_relation_size('{table}_counts_delta')")
        raw = number(f"SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('{table}')")
        point("grow_events: size", "states", n, "rows in the source", state / 1e6, "MB")
        point("grow_events: size", "source", n, "rows in the source", raw / 1e6, "MB")
    figures = {what: {n: [] for n in sizes} for what in ("batch", "cpu", "handler", "first", "hour", "final", "last", "whole", "maintain", "memory")}
    batches = 8
    for turn in range(ROUNDS + 1):
        sql("CHECKPOINT")
        sessions = {n: Session() for n in sizes}
        order = sizes if turn % 2 else sizes[::-1]
        got = {n: {what: 0.0 for what in figures} for n in sizes}
        for i in range(batches + 1):
            for n in order:
                day = n // DAY
                start = START + timedelta(days=day, minutes=25 * (turn * (batches + 1) + i))
                file = write_csv(work / f"{n}.csv", BATCH, lambda j: start + timedelta(seconds=j * 0.15))
                took, cpu = sessions[n].timed(f"COPY {leaf(tables[n], day)} FROM '{file}' CSV")
                if i == 0: # the first of its session makes plans
                    got[n]["first"] = took
                else:
                    got[n]["batch"] += took / batches
                    got[n]["cpu"] += cpu / batches
        for n in order:
            name = f"{tables[n]}_counts"
            got[n]["memory"] = anon(sessions[n].pid) / 1e6
            got[n]["handler"] = number(f"SELECT avg((streams->'{name}'->>'ms')::float8) FROM (SELECT streams FROM millrace.batches WHERE source = '{tables[n]}'::regclass ORDER BY xid DESC LIMIT {batches}) b") / 1000
            sessions[n].run(SERIAL)
            often = lambda text: median([sessions[n].timed(text)[0] for _ in range(5)])
            hour = lambda view, end: often(f"SELECT count(*), sum(n) FROM {view} WHERE window_start >= '{end - timedelta(hours=1)}'")
            got[n]["hour"] = hour(name, start)
            got[n]["final"] = hour(f"{name}_final", start - timedelta(hours=3))
            got[n]["last"] = often(f"SELECT max(window_start) FROM {name}")
            got[n]["whole"] = sessions[n].timed(f"SELECT count(*), sum(n), max(action) FROM {name}")[0] / (n / 1e6)
            got[n]["maintain"] = sessions[n].timed(f"CALL millrace.maintain('{name}')")[0]
            sessions[n].close()
        for n in sizes:
            for what in figures:
                if turn:
                    figures[what][n].append(got[n][what])
    for n in sizes:
        for what, series in (("batch", "batch of 10,000 by COPY"), ("cpu", "CPU of it"), ("handler", "the aggregate's part"), ("first", "first batch of a session"),
                             ("hour", "reading the last hour"), ("final", "the same, final"), ("last", "max(window_start)"), ("maintain", "maintain"),
                             ("whole", "reading all, each million events")):
            point("grow_events: time", series, n, "rows in the source", median(figures[what][n]) * 1000, "ms")
        point("grow_events: memory", "writing backend, private", n, "rows in the source", median(figures["memory"][n]), "MB")
    span = f"{human(sizes[-1])} rows in the source / {human(sizes[0])}"
    for what, name, target in (("batch", "a batch of 10,000", "<= 1.2"), ("cpu", "CPU of a batch", "<= 1.2"), ("handler", "the aggregate's part of a batch", "<= 1.2"),
                               ("first", "first batch of a session", ""), ("hour", "reading the last hour", "<= 1.5"), ("final", "the same, final", "<= 1.5"), ("last", "max(window_start)", ""),
                               ("maintain", "maintain after 9 batches", "<= 1.5"), ("whole", "reading all groups, each million events", "<= 1.2")):
        flat("grow_events", f"{name}, {span}", "s", figures[what], target)
    flat("grow_events", f"private memory of the writing backend, {span}", "MB", figures["memory"], "<= 1.2")
    drop(*tables.values())


def case_grow_groups(work):
    """Groups of a batch, and groups that there are already: time of a batch, reading, folding, memory of the backend"""
    work.chmod(0o755)
    # Of a batch: an aggregate beside plain COPY.
    create("plain", 1)
    create("grouped", 1, aggregate("grouped_counts", "grouped", "u"))
    per_batch = (1, 10, 100, 1000, 10000)
    times = {g: {"plain": [], "grouped": []} for g in per_batch}
    for g in per_batch:
        write_csv(work / f"groups{g}.csv", BATCH, lambda j: START, u=lambda j: j * 7919 % g)
    for turn in range(ROUNDS + 1):
        sql("TRUNCATE plain, grouped; CHECKPOINT")
        sql("SELECT millrace.refresh('grouped_counts')")
        sessions = {name: Session() for name in ("plain", "grouped")}
        for i in range(6):
            for g in per_batch:
                for name in (("plain", "grouped") if i % 2 else ("grouped", "plain")):
                    took = sessions[name].timed(f"COPY {leaf(name, 0)} FROM '{work}/groups{g}.csv' CSV")
                    if turn and i:
                        times[g][name].append(took)
        for session in sessions.values():
            session.close()
    for g in per_batch:
        for name, series in (("plain", "plain COPY"), ("grouped", "with an aggregate")):
            point("grow_groups: a batch of 10,000", series, g, "groups of the batch", median([t[0] for t in times[g][name]]) * 1000, "ms")
        mid = lambda name: tuple(median([t[i] for t in times[g][name]]) for i in (0, 1))
        report("grow_groups", f"a batch of 10,000 rows of {g:,} groups, with an aggregate / plain COPY", "s", mid("grouped"), mid("plain"), {1000: "<= 1.3", 10000: "<= 2"}.get(g, "<= 1.15"),
               [a[0] / b[0] for a, b in zip(times[g]["grouped"], times[g]["plain"])])
    # One statement of a million rows: what the hash of the groups takes.
    each = {}
    for g in (1, 1000, 100000, 1000000):
        each[g] = [], []
        for turn in range(2):
            create("grouped", 1, aggregate("grouped_counts", "grouped", "u"))
            session = Session()
            session.run(f"INSERT INTO grouped SELECT '{START}', 'a', 1")
            began = anon(session.pid)
            with Watch(session.pid) as watch:
                took, cpu = session.timed(f"INSERT INTO {leaf('grouped', 0)} SELECT '{START}', 'a', i * 7919 % {g} FROM generate_series(1, 1000000::bigint) i")
            each[g][0].append(cpu)
            each[g][1].append((watch.peak - began) / 1e6)
            session.close()
        point("grow_groups: a statement of a million rows", "CPU", g, "groups of the statement", min(each[g][0]), "s")
        point("grow_groups: a statement of a million rows", "peak of private memory", g, "groups of the statement", min(each[g][1]), "MB")
    report("grow_groups", "a statement of a million rows of a million groups: peak of private memory", "MB", min(each[1000000][1]), 0.0)
    # Those that there are already, in windows of a day.
    totals = (10000, 100000, 1000000, 3000000)
    for g in totals:
        table = f"total_{human(g).replace(' ', '').lower()}"
        create(table, 1, aggregate(f"{table}_counts", table, "u", "1 day"))
        for first in range(0, g, 500000):
            sql(f"INSERT INTO {leaf(table, 0)} SELECT '{START}', 'a', i FROM generate_series({first}, {min(first + 500000, g) - 1}) i")
        sql(f"SELECT millrace.compact('{table}_counts')")
        sql(f"VACUUM ANALYZE {table}_counts_state, {table}_counts_delta")
    figures = {what: {g: [] for g in totals} for what in ("batch", "cpu", "read", "unfolded", "one", "fold", "memory", "fold memory")}
    for turn in range(ROUNDS + 1):
        sql("CHECKPOINT")
        for g in totals if turn % 2 else totals[::-1]:
            name = f"total_{human(g).replace(' ', '').lower()}"
            session = Session()
            session.run(SERIAL)
            took = []
            for i in range(9):
                file = write_csv(work / "random.csv", BATCH, lambda j: START, u=lambda j: (j * 104729 + i * 7919 + turn * 31) % g)
                took.append(session.timed(f"COPY {leaf(name, 0)} FROM '{file}' CSV"))
            memory = anon(session.pid) / 1e6
            unfolded = session.timed(f"SELECT count(*), sum(n) FROM {name}_counts")[0]
            one = session.timed(f"SELECT * FROM {name}_counts WHERE u = 17 AND window_start = '{START}'")[0]
            folder = Session()
            with Watch(folder.pid) as watch:
                fold = folder.timed(f"SELECT millrace.compact('{name}_counts')")[0]
            folder.close()
            read = session.timed(f"SELECT count(*), sum(n) FROM {name}_counts")[0]
            sql(f"VACUUM {name}_counts_state, {name}_counts_delta")
            session.close()
            if turn:
                for what, value in (("batch", median([t[0] for t in took[1:]])), ("cpu", median([t[1] for t in took[1:]])), ("read", read), ("unfolded", unfolded), ("one", one), ("fold", fold),
                                    ("memory", memory), ("fold memory", watch.peak / 1e6)):
                    figures[what][g].append(value)
    for g in totals:
        for what, series in (("batch", "batch of 10,000 by COPY"), ("cpu", "CPU of it"), ("read", "reading all, folded"), ("unfolded", "reading all, 90,000 states not folded"),
                             ("one", "reading one group of the window"), ("fold", "folding 90,000 states")):
            point("grow_groups: groups in the window", series, g, "groups in the window", median(figures[what][g]) * 1000, "ms")
        for what, series in (("memory", "writing backend"), ("fold memory", "folding backend, peak")):
            point("grow_groups: memory", series, g, "groups in the window", median(figures[what][g]), "MB")
    span = f"{human(totals[-1])} groups in the window / {human(totals[0])}"
    flat("grow_groups", f"a batch of 10,000, {span}", "s", figures["batch"], "<= 1.2")
    flat("grow_groups", f"CPU of a batch, {span}", "s", figures["cpu"], "<= 1.2")
    flat("grow_groups", f"private memory of the writing backend, {span}", "MB", figures["memory"], "<= 1.2")
    for what in ("read", "fold"):
        report("grow_groups", f"{dict(read='reading all groups', fold='folding 90,000 states')[what]}, each group, {span}", "us",
               *(median(figures[what][g]) / g * 1e6 for g in (totals[-1], totals[0])), "<= 1.5")
    drop("plain", "grouped", *(f"total_{human(g).replace(' ', '').lower()}" for g in totals))


def case_grow_streams(work):
    """1 to 32 continuous aggregates on one source: a batch of 10,000"""
    work.chmod(0o755)
    counts = (0, 1, 2, 4, 8, 16, 32)
    files = [write_csv(work / f"{i}.csv", BATCH, lambda j: START + timedelta(minutes=25 * i, seconds=j * 0.15), action=lambda j: f"a{j % 4}") for i in range(8)]
    for n in counts:
        create(f"many{n}", 1, *(aggregate(f"many{n}_{i}", f"many{n}", options=", watermark => '1 hour'") for i in range(n)))
    figures = {what: {n: [] for n in counts} for what in ("batch", "cpu", "first", "memory")}
    for turn in range(ROUNDS + 1):
        sql("CHECKPOINT")
        sessions = {n: Session() for n in counts}
        got = {n: [] for n in counts}
        for i, file in enumerate(files):
            for n in counts if i % 2 else counts[::-1]:
                got[n].append(sessions[n].timed(f"COPY {leaf(f'many{n}', 0)} FROM '{file}' CSV"))
        for n in counts:
            if turn:
                figures["first"][n].append(got[n][0][0])
                figures["batch"][n].append(median([t[0] for t in got[n][1:]]))
                figures["cpu"][n].append(median([t[1] for t in got[n][1:]]))
                figures["memory"][n].append(anon(sessions[n].pid) / 1e6)
            sessions[n].close()
    for n in counts:
        for what, series in (("batch", "batch of 10,000 by COPY"), ("cpu", "CPU of it"), ("first", "first batch of a session")):
            point("grow_streams: time", series, n, "aggregates on the source", median(figures[what][n]) * 1000, "ms")
        point("grow_streams: memory", "writing backend, private", n, "aggregates on the source", median(figures["memory"][n]), "MB")
    for what, name, target in (("cpu", "CPU that an aggregate adds to a batch", "<= 1.2"), ("memory", "private memory that an aggregate adds", "<= 1.2")):
        scale = 1000 if what == "cpu" else 1
        more = lambda a, b: [(y - x) / (b - a) * scale for x, y in zip(figures[what][a], figures[what][b])]
        report("grow_streams", f"{name}, the 17th to 32nd / the 2nd to 8th", "ms" if what == "cpu" else "MB", median(more(16, 32)), median(more(1, 8)), target)
    report("grow_streams", "a batch with 32 aggregates / without", "s", tuple(median(figures[w][32]) for w in ("batch", "cpu")), tuple(median(figures[w][0]) for w in ("batch", "cpu")), "",
           [a / b for a, b in zip(figures["batch"][32], figures["batch"][0])])
    drop(*(f"many{n}" for n in counts))


def case_grow_writers(work):
    """1 to 16 sessions that write, small and large batches: throughput"""
    work.chmod(0o755)
    clients = (1, 2, 4, 8, 16)
    kinds = {"aggregate": aggregate("written_counts", "written"), "plain": None}
    for size, batches in ((100, 1600), (BATCH, 64)):
        files = [write_csv(work / f"{size}_{i}.csv", size, lambda j: START + timedelta(minutes=i, seconds=j % 60), action=lambda j: f"a{j % 4}") for i in range(16)]
        rates = {kind: {n: [] for n in clients} for kind in kinds}
        cpus = {kind: {n: [] for n in clients} for kind in kinds}
        for turn in range(ROUNDS + 1):
            for n in clients:
                for kind, statement in list(kinds.items())[::1 if turn % 2 else -1]:
                    create("written", 1, *([statement] if statement else []))
                    took, cpu = several(n, [f"COPY {leaf('written', 0)} FROM '{files[i % 16]}' CSV" for i in range(batches)])
                    if turn:
                        rates[kind][n].append(size * batches / took)
                        cpus[kind][n].append(cpu / batches * 1000)
            assert sql("SELECT count(*) FROM written") == str(size * batches)
        for kind in kinds:
            for n in clients:
                point(f"grow_writers: batches of {size:,}", kind, n, "sessions that write", median(rates[kind][n]), "rows/s")
                point(f"grow_writers: batches of {size:,}", f"{kind}, CPU of a batch", n, "sessions that write", median(cpus[kind][n]), "ms")
            report("grow_writers", f"batches of {size:,}, {kind}: 2 sessions / 1", "rows/s", median(rates[kind][2]), median(rates[kind][1]), ">= 1.6" if kind == "aggregate" else "",
                   [a / b for a, b in zip(rates[kind][2], rates[kind][1])])
            report("grow_writers", f"batches of {size:,}, {kind}: 16 sessions / 2", "rows/s", median(rates[kind][16]), median(rates[kind][2]), ">= 0.9" if kind == "aggregate" else "",
                   [a / b for a, b in zip(rates[kind][16], rates[kind][2])])
    drop("written")


def case_grow_partitions(work):
    """1 to 1,000 partitions of a source: a batch of 10,000, the first of a session, memory of the backend, making partitions; beside tables without Millrace"""
    work.chmod(0o755)
    counts = (1, 10, 100, 1000)
    kinds = {"ours": "parted", "plain": "bare"}
    making = {}
    for n in counts:
        create(f"parted{n}", 1, aggregate(f"parted{n}_counts", f"parted{n}", options=", watermark => '1 hour'"))
        sql(f"SET client_min_messages = warning; DROP TABLE IF EXISTS bare{n} CASCADE; CREATE TABLE bare{n} {COLUMNS} PARTITION BY RANGE (at)")
        # What ensure_partitions does: LIKE and ATTACH, in one transaction.
        making["plain", n] = seconds(lambda: sql(f"""DO $$ DECLARE day timestamptz := '{START}'; leaf text; BEGIN
            FOR i IN 1 .. {n} LOOP
                leaf := 'bare{n}_' || to_char(day, 'YYYYMMDD');
                EXECUTE format('CREATE TABLE %s (LIKE bare{n} INCLUDING DEFAULTS)', leaf);
                EXECUTE format('ALTER TABLE bare{n} ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)', leaf, day, day + interval '1 day');
                day := day + interval '1 day';
            END LOOP; END $$"""))
        making["ours", n] = seconds(lambda: sql(f"SELECT millrace.ensure_partitions('parted{n}', '{START}', timestamptz '{START}' + ({n} - 0.5) * interval '1 day')"))
    assert all(sql(f"SELECT count(*) FROM pg_partition_tree('{table}{n}') WHERE isleaf") == str(n) for table in kinds.values() for n in counts)
    write_csv(work / "first.csv", BATCH, lambda j: START + timedelta(seconds=j * 0.15))
    figures = {(kind, n): {what: [] for what in ("batch", "cpu", "first", "parent", "more", "memory", "all memory")} for kind in kinds for n in counts}
    for turn in range(ROUNDS + 1):
        sql("CHECKPOINT")
        sessions = {each: Session() for each in figures}
        got = {each: [] for each in figures}
        for i in range(8):
            for kind, n in list(figures)[::1 if i % 2 else -1]:
                got[kind, n].append(sessions[kind, n].timed(f"COPY {leaf(f'{kinds[kind]}{n}', 0)} FROM '{work}/first.csv' CSV"))
        for (kind, n), session in sessions.items():
            table, given = f"{kinds[kind]}{n}", figures[kind, n]
            memory = anon(session.pid) / 1e6
            session.run(f"COPY {table} FROM '{work}/first.csv' CSV")
            parent = median([session.timed(f"COPY {table} FROM '{work}/first.csv' CSV")[0] for _ in range(3)])
            # Batches that are for another leaf than all before
            more = [session.timed(f"INSERT INTO {leaf(table, day)} SELECT timestamptz '{START + timedelta(days=day)}', 'a', 1")[0] for day in range(n)]
            if turn:
                for what, value in (("batch", median([t[0] for t in got[kind, n][1:]])), ("cpu", median([t[1] for t in got[kind, n][1:]])), ("first", got[kind, n][0][0]), ("parent", parent),
                                    ("more", median(more[-10:])), ("memory", memory), ("all memory", anon(session.pid) / 1e6)):
                    given[what].append(value)
            session.close()
    for kind, n in figures:
        suffix = "" if kind == "ours" else ", without Millrace"
        for what, series in (("batch", "batch of 10,000 into a leaf"), ("first", "first batch of a session"), ("parent", "batch of 10,000 through the parent"),
                             ("more", "one row into a leaf that is new to the session")):
            point("grow_partitions: time", series + suffix, n, "partitions", median(figures[kind, n][what]) * 1000, "ms")
        point("grow_partitions: memory", "backend that has written to all leaves" + suffix, n, "partitions", median(figures[kind, n]["all memory"]), "MB")
        point("grow_partitions: time", "making a partition" + suffix, n, "partitions", making[kind, n] / n * 1000, "ms")
    most = counts[-1]
    span = f"{most:,} partitions / {counts[0]}"
    for what, name, target in (("batch", "a batch of 10,000 into a leaf", "<= 1.2"), ("cpu", "CPU of it", "<= 1.2"), ("first", "first batch of a session", ""),
                               ("memory", "private memory of a backend that writes one leaf", "<= 1.2")):
        flat("grow_partitions", f"{name}, {span}", "MB" if what == "memory" else "s", {n: figures["ours", n][what] for n in counts}, target)
    for what, name, target in (("parent", "a batch of 10,000 through the parent", "<= 1.5"), ("more", "one row into a leaf that is new to the session", "")):
        ours, plain = (figures[kind, most][what] for kind in kinds)
        report("grow_partitions", f"{name}, {most:,} partitions, with an aggregate / without Millrace", "s", median(ours), median(plain), target, [a / b for a, b in zip(ours, plain)])
    of_a_leaf = {kind: median([(a - b) / (most - 1) * 1000 for a, b in zip(figures[kind, most]["all memory"], figures[kind, most]["memory"])]) for kind in kinds}
    report("grow_partitions", "private memory of a backend for each leaf that it has written, one aggregate / without Millrace", "kB", of_a_leaf["ours"], of_a_leaf["plain"], "<= 4")
    report("grow_partitions", f"making {most:,} partitions, with an aggregate / without Millrace", "s", making["ours", most], making["plain", most], "<= 2")
    drop(*(f"{table}{n}" for table in kinds.values() for n in counts))
