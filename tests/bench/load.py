"""What everything takes while a shop's pipeline runs, and what sealed states cost."""
import math, os, re, statistics, subprocess, threading, time
from pathlib import Path

from ingest import broker, threads_of
from measure import ROOT, ROUNDS, Session, interleaved, median_pair, point, report, run, sql
from serving import Client, client_program, recommend, write_values

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
RATES = [int(rate) for rate in os.environ.get("LOAD_RATES", "1000 10000").split()]
SECONDS = float(os.environ.get("LOAD_SECONDS", "30"))
PAST = 200000                  # events that are there before, of a day
READS = 2                      # dashboard queries a second
CALLS = 50                     # of recommend_top_k a second


def stat(pid):
    """Parent, CPU seconds with those of children that have ended, of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / TICK


def memory(pid):
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
        self.first, self.last, self.peaks, self.threads, self.over = {}, {}, {}, {}, False
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.at = time.monotonic()
        self.idle = self.machine()
        self.look(memory_too=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over = True
        self.thread.join()
        self.look(memory_too=True)
        self.seconds = time.monotonic() - self.at
        self.busy = (self.machine() - self.idle) / self.seconds

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
        """What a child of the postmaster is."""
        if pid in self.named:
            return self.named[pid]
        title = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip().removeprefix("postgres: ")
        for name in ("checkpointer", "walwriter", "background writer", "autovacuum worker", "autovacuum launcher", "parallel worker", "logical replication launcher", "pg_cron"):
            if title.startswith(name):
                return f"PostgreSQL: {name}"
        return "a session of the ingester" if title.startswith("postgres ") else None

    def look(self, memory_too):
        pids = [int(task) for task in Path(f"/proc/{self.postmaster}/task/{self.postmaster}/children").read_text().split()]
        for pid in {*self.named, *pids}:
            try:
                name = self.last.get(pid, (self.kind(pid),))[0]
                if name is None:
                    continue
                cpu = stat(pid)[1]
                self.first.setdefault(pid, cpu if time.monotonic() - self.at < 0.3 else 0)
                self.last[pid] = name, cpu
                if memory_too:
                    self.peaks[pid] = [max(pair) for pair in zip(self.peaks.get(pid, (0, 0)), memory(pid))]
            except (OSError, IndexError, ValueError):
                pass
        for task, (name, cpu) in threads_of(self.ingester).items():
            self.threads.setdefault(task, [name, cpu, cpu])[2] = cpu

    def processes(self):
        """{name: (share of a core, private bytes, Pss)}, processes of one name together; memory at the peak of the greatest."""
        out = {}
        for pid, (name, cpu) in self.last.items():
            so_far = out.setdefault(name, [0.0, 0, 0])
            so_far[0] += (cpu - self.first[pid]) / self.seconds
            for i in (0, 1):
                so_far[i + 1] = max(so_far[i + 1], self.peaks.get(pid, (0, 0))[i])
        return out

    def by_thread(self):
        out = {}
        for name, first, last in self.threads.values():
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
    """The shop's pipeline, with readers, a trainer and upkeep, at fixed rates of a real broker: CPU and memory of each process; and the highest rate that is sustained"""
    statements_of(SHOP / "schema.sql")
    # The harness keeps autovacuum off; a server has it.
    sql("ALTER SYSTEM SET autovacuum = on")
    sql("SELECT pg_reload_conf()")
    ingester = None
    with broker(work) as brokers:
        try:
            end_of = producer(brokers, work, "--create-topic", "--partitions=4", f"--past={PAST}:1d", "--once", "--seed=1")
            if end_of.wait():
                raise RuntimeError("the producer failed: " + (work / "producer.log").read_text()[-500:])
            ingester = start_ingester(work, brokers)
            until(lambda: stored() >= PAST, "the past is stored", 120)
            statements_of(SHOP / "model.sql")
            for rate in RATES:
                watch, done, behind, took = at_rate(work, brokers, ingester, rate, SECONDS)
                what = f"{rate:,} events/s"
                report("load", f"{what}: stored / produced", "events/s", done, rate, ">= 0.99")
                report("load", f"{what}: events behind at the end / a second's", "events", behind, rate, "<= 2")
                processes, threads = watch.processes(), watch.by_thread()
                for name, (share, private, pss) in sorted(processes.items(), key=lambda item: -item[1][0]):
                    report("load", f"{what}: {name}: % of a core", "%", share * 100, 0)
                    report("load", f"{what}: {name}: private memory, with its share of what is shared", "MB", private / 1e6, pss / 1e6)
                for name, share in sorted(threads.items(), key=lambda item: -item[1]):
                    report("load", f"{what}: ingester, threads {name}: % of a core", "%", share * 100, 0)
                ours = sum(share for name, (share, *_) in processes.items() if name in ("ingester", "a session of the ingester"))
                report("load", f"{what}: events a second and core of ingester and its sessions", "events/s", done / ours, 0)
                report("load", f"{what}: all of it, % of a core; the machine", "%", 100 * sum(share for share, *_ in processes.values()), 100 * watch.busy)
                for name, times in took.items():
                    times.sort()
                    report("load", f"{what}: {name}, seen by psql: median; 99th percentile", "ms", statistics.median(times) * 1e3, times[int(len(times) * 0.99)] * 1e3)
            sustained(work, brokers, ingester)
        finally:
            end(ingester)
    check_shop()
    sql("ALTER SYSTEM RESET autovacuum")
    sql("SELECT pg_reload_conf()")


def sustained(work, brokers, ingester):
    """The highest rate at which no lag grows, everything on this machine: first what the ingester stores when there is plenty, then shares of that."""
    source = producer(brokers, work, "--rate=max", f"--first-id={2 * 10**9}", "--duration=5s")
    try:
        source.wait(60)
        n, clock = stored(), time.monotonic()
        there = produced(brokers)
        until(lambda: stored() >= there, "what was produced is stored", 300)
        drained = (there - n) / (time.monotonic() - clock)
        report("load", "as fast as can be, no producer: stored", "events/s", drained, 0)
        for share in (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
            rate = int(drained * share)
            watch, done, behind, _ = at_rate(work, brokers, ingester, rate, 10, readers=False)
            if done >= 0.98 * rate and behind <= 2 * rate:
                processes = watch.processes()
                report("load", "highest rate that is sustained beside producer and broker, all on this machine", "events/s", done, drained)
                for name, (share, *_) in sorted(processes.items(), key=lambda item: -item[1][0])[:5]:
                    report("load", f"at that rate: {name}: % of a core", "%", share * 100, 0)
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
    n_batches, size = 20, 10000
    try:
        sql("SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS hll")
    except subprocess.CalledProcessError as error:
        raise RuntimeError("package hll is not installed: " + error.stderr.strip().splitlines()[0]) from error
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
                figures.setdefault(name, []).append((tuple(copied), tuple(folded), tuple(read), states / n, peak))
        print(f"# {what}: {n:,} groups", flush=True)
        ratio_of = lambda i, peer, label, unit, target="": report(
            "sealed", f"{what}: {label}: sealed / {peer}", unit, *(median_pair([round[i] for round in figures[name][1:]]) for name in ("sealed", peer)), target,
            [a[i][0] / b[i][0] for a, b in zip(figures["sealed"][1:], figures[peer][1:])])
        for peer in ("SQL-typed", "count"):
            ratio_of(0, peer, "COPY", f"s, {n_batches * size:,} rows", "<= 1.1" if peer == "SQL-typed" else "")
            ratio_of(1, peer, "folding", "s")
            ratio_of(2, peer, "reading all", "s", "<= 1.1" if peer == "SQL-typed" else "")
            report("sealed", f"{what}: a group's state: sealed / {peer}", "bytes", *(statistics.median(round[3] for round in figures[name][1:]) for name in ("sealed", peer)))
            report("sealed", f"{what}: peak memory of the writing session: sealed / {peer}", "MB", *(statistics.median(round[4] for round in figures[name][1:]) / 1e6 for name in ("sealed", peer)))
    sql("DROP TABLE visits CASCADE; DROP AGGREGATE sketch(hll_hashval); DROP EXTENSION hll")
