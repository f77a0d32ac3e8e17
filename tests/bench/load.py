"""What everything takes while a shop's pipeline runs, and what sealed states cost."""
import os, re, statistics, subprocess, threading, time
from pathlib import Path

from ingest import broker, threads_of
from measure import ROOT, ROUNDS, Session, beside, given, median_pair, report, run, server_settings, sql

TICK = os.sysconf("SC_CLK_TCK")
RATES = [int(rate) for rate in os.environ.get("LOAD_RATES", "1000 10000").split()]
SECONDS = float(os.environ.get("LOAD_SECONDS", "30"))
PAST = 200000                  # events that are there before, of a day
READS = 2                      # dashboard queries a second
CALLS = 50                     # of recommend_top_k a second


def memory_of(pid):
    """Private bytes that are no file's, and the share of all (Pss); 0 when it may not be read."""
    status = re.search(r"^RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    pss = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    return int(status[1]) * 1024 if status else 0, int(pss[1]) * 1024 if pss else 0


class Watch:
    """CPU seconds and memory of processes by name: of those that are given, and of all children of the postmaster, which are called by what they are."""

    def __init__(self, named, ingester):
        """named: {pid: name}, also of backends."""
        self.named, self.ingester = {int(pid): name for pid, name in named.items()}, ingester
        self.postmaster = int(Path(sql("SHOW data_directory"), "postmaster.pid").read_text().split()[0])
        self.names, self.threads, self.peaks, self.over = {}, {}, {}, False
        self.activity, self.session = {}, Session()
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.look(memory_too=True, is_first=True)
        self.at = time.monotonic()
        self.idle = self.machine()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over = True
        self.thread.join()
        self.look(memory_too=True)
        self.seconds = time.monotonic() - self.at
        self.busy = (self.machine() - self.idle) / self.seconds
        self.session.close()

    @staticmethod
    def machine():
        """CPU seconds of the whole machine that were not idle."""
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) / TICK

    def run(self):
        turn = 0
        while not self.over:
            self.look(memory_too=turn % 10 == 0)
            turn += 1
            time.sleep(0.1)

    def kind(self, pid):
        """What a child of the postmaster is; None: not known, or a session of this program."""
        if self.activity.get(pid, "").startswith("millrace"):
            return "a session of the ingester"
        title = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip().removeprefix("postgres: ")
        for name in ("checkpointer", "walwriter", "background writer", "autovacuum worker", "parallel worker"):
            if title.startswith(name):
                return f"PostgreSQL: {name}"
        return "PostgreSQL: launchers" if title.startswith(("autovacuum launcher", "logical replication launcher", "pg_cron")) else None

    def look(self, memory_too, is_first=False):
        if memory_too:
            rows = self.session.run("SELECT pid, application_name FROM pg_stat_activity WHERE backend_type = 'client backend'").splitlines()
            self.activity.update((int(pid), name) for pid, name in (row.split("|") for row in rows))
        children = [int(pid) for pid in Path(f"/proc/{self.postmaster}/task/{self.postmaster}/children").read_text().split()]
        for pid in {*self.named, *children}:
            try:
                if not self.names.get(pid):
                    self.names[pid] = self.named.get(pid) or self.kind(pid)
                for task, (name, cpu) in threads_of(pid).items():
                    self.threads.setdefault((pid, task), [name, cpu if is_first else 0, cpu])[2] = cpu
                if memory_too:
                    self.peaks[pid] = [max(pair) for pair in zip(self.peaks.get(pid, (0, 0)), memory_of(pid))]
            except (OSError, IndexError, ValueError):
                pass

    def processes(self):
        """{name: [share of a core, private bytes, Pss]}, processes of one name together; memory at the peak of the greatest."""
        out = {}
        for (pid, _), (_, first, last) in self.threads.items():
            if not self.names.get(pid):
                continue
            so_far = out.setdefault(self.names[pid], [0.0, 0, 0])
            so_far[0] += (last - first) / self.seconds
            for i in (0, 1):
                so_far[i + 1] = max(so_far[i + 1], self.peaks.get(pid, (0, 0))[i])
        return out

    def by_thread(self):
        """The same share of the ingester's threads, by name."""
        out = {}
        for (pid, _), (name, first, last) in self.threads.items():
            if pid == self.ingester:
                out[name] = out.get(name, 0) + (last - first) / self.seconds
        return out


class Paced(threading.Thread):
    """A session that says a statement so often a second, until it is ended."""

    def __init__(self, statement, rate):
        super().__init__()
        self.session, self.statement, self.rate, self.over, self.took = Session(), statement, rate, False, []
        self.failed = None
        self.start()

    def run(self):
        due = time.monotonic()
        while not self.over:
            began = time.monotonic()
            try:
                self.session.run(self.statement(len(self.took)))
            except (RuntimeError, OSError) as error:
                self.failed = error
                return
            self.took.append(time.monotonic() - began)
            due = max(due + 1 / self.rate, began)
            time.sleep(max(due - time.monotonic(), 0))

    def end(self):
        self.over = True
        self.join()
        self.session.close()
        if self.failed:
            raise RuntimeError(f"a reader failed: {self.failed}")


SHOP = ROOT / "docker/shop"


def statements_of(path):
    """A file of the shop as psql runs it."""
    run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-f", str(path))


def stored():
    """Events whose transaction has committed, by the positions."""
    return int(sql("SELECT coalesce(sum(next_offset), 0) FROM millrace.ingest_offsets"))


def until(true, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not in time: {what}")
        time.sleep(0.05)


def start_ingester(work, brokers):
    return subprocess.Popen(["millrace", "run", str(SHOP / "shop.ini"), "--log.level=warning"], env={**os.environ, "MILLRACE_SOURCE_BROKERS": brokers},
                            stdout=subprocess.DEVNULL, stderr=open(work / "ingester.log", "w"))


def producer(brokers, work, *options):
    return subprocess.Popen(["millrace", "produce", "--simulate=shop", f"--to={SHOP / 'shop.ini'}", *options], env={**os.environ, "MILLRACE_SOURCE_BROKERS": brokers},
                            stdout=subprocess.DEVNULL, stderr=open(work / "producer.log", "w"))


def end(process):
    if process and process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def produced(brokers):
    """Messages in the topic."""
    out = run("kcat", "-b", brokers, "-Q", *(option for partition in range(4) for option in ("-t", f"operations:{partition}:-1")))
    return sum(int(number) for number in re.findall(r"offset (\d+)", out))


def at_rate(work, brokers, ingester, rate, seconds, readers=True):
    """The pipeline for so long at so many events a second: (watch, rate of what was stored, events behind at the end, seconds of readers and calls)."""
    snapshot = (SHOP / "snapshot.sql").read_text().split("\n", 1)[1].rstrip().rstrip(";")
    sessions = {}
    source = producer(brokers, work, f"--rate={rate}", f"--first-id={10**9 + produced(brokers)}")
    try:
        began = stored()
        until(lambda: stored() > began, "the producer's first events")
        if readers:
            sessions = {"a dashboard": Paced(lambda n: snapshot, READS),
                        "recommend_top_k": Paced(lambda n: f"SELECT count(*) FROM millrace.recommend_top_k('shop', {500000000 + n * 37 % 2000}, 10)", CALLS)}
            trainer = Session()
        named = {source.pid: "producer", ingester.pid: "ingester", int((work / "kafka/pid").read_text()): "broker",
                 **{paced.session.pid: f"a session: {name}" for name, paced in sessions.items()}, **({trainer.pid: "a session: retrain"} if readers else {})}
        n, clock = stored(), time.monotonic()
        with Watch(named, ingester.pid) as watch:
            if readers:
                time.sleep(seconds / 3)
                trainer.run("SET client_min_messages = warning; SELECT millrace.retrain('shop')")
            while time.monotonic() - clock < seconds:
                if source.poll() is not None or ingester.poll() is not None:
                    raise RuntimeError("the producer or the ingester has ended: " + (work / "producer.log").read_text()[-300:] + (work / "ingester.log").read_text()[-300:])
                time.sleep(0.05)
            there = produced(brokers)
            done = stored()
            took = time.monotonic() - clock
        if readers:
            trainer.close()
        return watch, (done - n) / took, there - done, {name: paced.took for name, paced in sessions.items()}
    finally:
        end(source)
        for paced in sessions.values():
            paced.end()


def case_load(work):
    """The shop's pipeline, with readers, a training and upkeep, at fixed rates of a real broker: CPU and memory of each process; and the highest rate that is sustained"""
    ingester, given.rounds = None, 1
    with server_settings(fsync="on", autovacuum="on"), broker(work) as brokers:
        statements_of(SHOP / "schema.sql")
        try:
            made = producer(brokers, work, "--create-topic", "--partitions=4", f"--past={PAST}:1d", "--once", "--seed=1")
            if made.wait():
                raise RuntimeError("the producer failed: " + (work / "producer.log").read_text()[-500:])
            ingester = start_ingester(work, brokers)
            until(lambda: stored() >= PAST, "the past is stored", 120)
            statements_of(SHOP / "model.sql")
            for rate in RATES:
                at_work(f"{rate:,} events/s", rate, *at_rate(work, brokers, ingester, rate, SECONDS))
            sustained(work, brokers, ingester)
            end(ingester)
            check_shop()
        finally:
            end(ingester)


def at_work(what, rate, watch, done, behind, took):
    """What at_rate() saw."""
    report("load", f"{what}: stored / produced", "events/s", done, rate, ">= 0.95")
    report("load", f"{what}: events behind at the end / those of a second", "events", behind, rate, "<= 2")
    processes = watch.processes()
    for name, (share, private, pss) in sorted(processes.items(), key=lambda item: -item[1][0]):
        report("load", f"{what}: {name}: CPU", "% of a core", share * 100, 0)
        report("load", f"{what}: {name}: private memory; with its share of what is shared", "MB", private / 1e6, pss / 1e6)
    for name, share in sorted(watch.by_thread().items(), key=lambda item: -item[1]):
        report("load", f"{what}: ingester, threads {name}: CPU", "% of a core", share * 100, 0)
    per_core(what, processes, done)
    report("load", f"{what}: all of these; the machine", "% of a core", 100 * sum(share for share, *_ in processes.values()), 100 * watch.busy)
    for name, times in took.items():
        times.sort()
        report("load", f"{what}: {name}, as psql sees it: 99th percentile; median", "ms", times[int(len(times) * 0.99)] * 1e3, statistics.median(times) * 1e3)


def per_core(what, processes, done):
    sessions = processes["a session of the ingester"][0]
    report("load", f"{what}: what a core stores: by the CPU of ingester and its sessions; of the sessions alone", "events/s", done / (sessions + processes["ingester"][0]), done / sessions)


def sustained(work, brokers, ingester):
    """The highest rate at which no lag grows, everything on this machine: first what the ingester stores when there is plenty, then shares of that."""
    source = producer(brokers, work, "--rate=max", f"--first-id={2 * 10**9}", "--duration=5s")
    try:
        source.wait(60)
        n, clock = stored(), time.monotonic()
        there = produced(brokers)
        until(lambda: stored() >= there, "what was produced is stored", 300)
        drained = (there - n) / (time.monotonic() - clock)
        for share in (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
            rate = int(drained * share)
            watch, done, behind, _ = at_rate(work, brokers, ingester, rate, 10, readers=False)
            if done >= 0.98 * rate and behind <= 2 * rate:
                processes = watch.processes()
                report("load", "highest rate that is sustained, producer and broker beside it; stored when there is plenty and no producer", "events/s", done, drained)
                for name, (used, *_) in sorted(processes.items(), key=lambda item: -item[1][0])[:4]:
                    report("load", f"at that rate: {name}: CPU", "% of a core", used * 100, 0)
                per_core("at that rate", processes, done)
                return
            until(lambda: stored() >= produced(brokers), "what was produced is stored", 300)
        report("load", "not met: no rate is sustained", "events/s", float("nan"), float("nan"), ">= 1")
    finally:
        end(source)


def check_shop():
    """Everything is there once, and the aggregates are those of the raw rows."""
    n = stored()
    assert sql("SELECT count(*) FROM operations_raw") == sql("SELECT count(*) FROM operations") == str(n), "not every event once"
    assert sql("SELECT sum(n) FROM operations_per_minute") == str(n), "the aggregate by minute is wrong"
    assert sql("SELECT count(*) FROM recommended WHERE scored_at IS NOT NULL") != "0", "nothing was recommended"


SKETCHES = {
    "sealed": "hll_add_agg(hll_hash_bigint(visitor))",       # its state is internal: stored as bytea with a seal
    "SQL-typed": "sketch(hll_hash_bigint(visitor))",         # the same sketch, the state being of type hll
    "count": "count(*)",
}


def case_sealed(work):
    """A HyperLogLog of visitors, hll_add_agg of package hll, whose states are sealed, beside the same sketch with a state of an SQL type, and count(*): COPY, state, folding, reading"""
    work.chmod(0o755)
    n_batches, size = 10, 10000
    try:
        sql("CREATE EXTENSION hll")
    except subprocess.CalledProcessError as error:
        raise RuntimeError("package hll is not installed: " + error.stderr.strip().splitlines()[0]) from error
    beside("hll", sql("SELECT extversion FROM pg_extension WHERE extname = 'hll'"), "the machine's packages")
    sql("CREATE AGGREGATE sketch(hll_hashval) (SFUNC = hll_add, STYPE = hll, INITCOND = '\\x118b7f', COMBINEFUNC = hll_union, PARALLEL = SAFE)")
    for pages, what in ((4, "100 groups a batch"), (400, "10,000 groups a batch")):
        files = []
        for batch in range(n_batches):
            files.append(work / f"{pages}-{batch}.csv")
            run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-c", f"""\\copy (SELECT timestamptz '2024-01-01' + {batch} * interval '25 minutes' + i * interval '0.15 s', 'p' || hashint4(i) % {pages},
                hashint8extended(i, {batch}) % 100000 FROM generate_series(1, {size}) i) TO '{files[-1]}' CSV""")
        figures = {}
        for turn in range(ROUNDS + 1):
            order = list(SKETCHES)
            for name in order if turn % 2 else reversed(order):
                session = Session()
                session.run("""DROP TABLE IF EXISTS visits CASCADE; CREATE TABLE visits (at timestamptz NOT NULL, page text, visitor bigint);
                    SELECT millrace.create_source('visits', 'at')""")
                session.run(f"""SELECT millrace.create_continuous_aggregate('visitors', $$SELECT page, millrace.tumble(at, '1 minute') AS window_start, {SKETCHES[name]} AS n
                    FROM visits GROUP BY 1, 2$$, watermark => '1 minute')""")
                sql("CHECKPOINT")
                copied = [sum(column) for column in zip(*(session.timed(f"COPY visits FROM '{file}' CSV") for file in files))]
                peak = int(re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{session.pid}/status").read_text(), re.M)[1]) * 1024
                folded = [sum(column) for column in zip(*(session.timed("CALL millrace.maintain()") for _ in range(3)))]
                sql("VACUUM ANALYZE visitors_state, visitors_delta")
                session.run("SET max_parallel_workers_per_gather = 0")
                reading = "SELECT count(n) FROM visitors"
                session.run(reading)
                read = session.timed(reading)
                n = int(sql("SELECT count(*) FROM visitors"))
                states = int(sql("SELECT pg_total_relation_size('visitors_state') + pg_total_relation_size('visitors_delta')"))
                if name == "sealed":
                    assert sql("SELECT count(*) FROM millrace.verify('visitors')") == "0", "the sketches are wrong"
                session.close()
                session = Session()
                session.run("SET max_parallel_workers_per_gather = 0")
                query = f"SELECT count(n) FROM (SELECT page, millrace.tumble(at, '1 minute') AS window_start, {SKETCHES[name]} AS n FROM visits GROUP BY 1, 2) AS q"
                session.run(query)
                grouped = session.timed(query)
                session.close()
                figures.setdefault(name, []).append((tuple(copied), tuple(folded), tuple(read), states / n, peak, tuple(grouped)))
        print(f"# {what}: {n:,} groups", flush=True)
        ratio_of = lambda i, peer, label, unit, target="": report(
            "sealed", f"{what}: {label}: sealed / {peer}", unit, *(median_pair([round[i] for round in figures[name][1:]]) for name in ("sealed", peer)), target,
            [a[i][0] / b[i][0] for a, b in zip(figures["sealed"][1:], figures[peer][1:])])
        for peer in ("SQL-typed", "count"):
            ratio_of(0, peer, "COPY", f"s, {n_batches * size:,} rows")
            ratio_of(1, peer, "folding", "s")
            ratio_of(2, peer, "reading all", "s")
            ratio_of(5, peer, "GROUP BY of all rows by PostgreSQL, without Millrace", "s")
            report("sealed", f"{what}: a group's state: sealed / {peer}", "bytes", *(statistics.median(round[3] for round in figures[name][1:]) for name in ("sealed", peer)))
            report("sealed", f"{what}: peak memory of the writing session: sealed / {peer}", "MB", *(statistics.median(round[4] for round in figures[name][1:]) / 1e6 for name in ("sealed", peer)))
        added = lambda rounds, i: [tuple(a - b for a, b in zip(sketch[i], count[i])) for sketch, count in rounds]
        rounds = list(zip(figures["sealed"], figures["count"]))[1:]
        report("sealed", f"{what}: what the sketch adds to COPY / to GROUP BY without Millrace", "s", median_pair(added(rounds, 0)), median_pair(added(rounds, 5)), "",
               [a[0] / b[0] for a, b in zip(added(rounds, 0), added(rounds, 5))])
    sql("DROP TABLE visits CASCADE; DROP AGGREGATE sketch(hll_hashval); DROP EXTENSION hll")
