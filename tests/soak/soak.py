"""The soak's actors, disturbances and samples: soak.py WORK OUT SECONDS RATE EVERY, started by run.sh.

WORK has the cluster and the broker.  Producer and ingester are started here.  Written: OUT/samples.csv (seconds, subject, measure,
value), OUT/soak.svg, OUT/summary.json, and WORK/verdicts: a line each of 0 or 1, a tab, and what was looked at."""
import csv, json, os, random, re, signal, socket, statistics, subprocess, sys, threading, time, urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bench"))
from measure import Session  # noqa: E402

work, out = Path(sys.argv[1]), Path(sys.argv[2])
SECONDS, RATE, EVERY = float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
RETRAIN = 40 if SECONDS < 600 else 300
SHOP = HERE.parents[1] / "docker" / "shop"
SNAPSHOT = (SHOP / "snapshot.sql").read_text().strip().rstrip(";")
LIBRARY = HERE.parent / "lib"
start = time.monotonic()
over = threading.Event()
lock = threading.Lock()
counts, marks, samples = {}, [], []


def now():
    return time.monotonic() - start


def count(name):
    with lock:
        counts[name] = counts.get(name, 0) + 1


def mark(text):
    marks.append((now(), text))
    print(f"# {now():6.0f} s: {text}", flush=True)


def within(seconds, done, what):
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline or over.wait(0.1):
            return count(f"unexpected: nobody has {what}")


def say(text):
    print(f"# {now():6.0f} s: {text}", flush=True)


# ---- the ingester and the producer ----

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


METRICS = f"127.0.0.1:{free_port()}"
ingester = producer = None


def start_ingester():
    global ingester
    with open(work / "ingester.log", "a") as log:
        ingester = subprocess.Popen(["millrace", "run", str(SHOP / "shop.ini"), f"--metrics.listen={METRICS}"], stdin=subprocess.DEVNULL,
                                    stdout=log, stderr=log, env=os.environ | {"PGAPPNAME": "millrace"})


def start_producer():
    global producer
    with open(work / "producer.log", "w") as log:
        producer = subprocess.Popen(["millrace", "produce", "--simulate=shop", f"--to={SHOP / 'shop.ini'}", f"--rate={RATE}", "--first-id=100001",
                                     "--time=event_time", "--late=1%:10min", "--duplicates=0.5%", "--bad=0.2%", "--seed=9"],
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=log)


statuses = []  # with which it has ended


def keep_ingester():
    """Starts it again when it has ended, as a service manager does."""
    while not over.wait(0.2):
        if ingester.poll() is not None:
            statuses.append(ingester.returncode)
            start_ingester()


def end_ingester(how):
    """… and waits until there is another: the next disturbance is for that one."""
    old = ingester
    old.send_signal(how)
    within(60, lambda: ingester is not old, "started the ingester again")


# ---- sessions ----

class Steady:
    """A session that is opened again when it has been ended."""

    def __init__(self, name):
        self.name, self.session = name, None

    def run(self, text):
        try:
            if self.session is None:
                self.session = Session()
                self.session.run(f"SET application_name = '{self.name}'")
            return self.session.run(text)
        except (RuntimeError, OSError, ValueError) as error:
            self.close()
            count(f"{self.name}: session or statement ended")
            if not any(known in str(error) for known in EXPECTED):
                count(f"unexpected: {self.name}: {str(error)[-300:]}")
            time.sleep(0.5)
            return None

    def close(self):
        if self.session is not None:
            self.session.psql.kill()
            self.session.psql.wait()
            self.session.psql.stdin.close()
            self.session.psql.stdout.close()
            self.session.errors.close()
            self.session = None


EXPECTED = ("terminating connection", "server closed the connection", "connection to server", "canceling statement", "Broken pipe",
            "the database system is", "another server process exited", "consistent recovery state")


def dashboard():
    session = Steady("soak dashboard")
    while not over.wait(2):
        if session.run(SNAPSHOT) is not None:
            count("dashboard queries")
    session.close()


def recommender():
    chance, session = random.Random(1), Steady("soak recommender")
    users = []
    while not over.wait(0.1):
        if not users or chance.random() < 0.001:
            users = (session.run("SELECT DISTINCT user_id FROM operations_raw WHERE event_time > now() - interval '1 minute' LIMIT 200") or "").split()
        elif session.run(f"SELECT count(*) FROM millrace.recommend_top_k('shop', {chance.choice(users)}, 10)") is not None:
            count("calls of recommend_top_k")
    session.close()


DIRECT = """BEGIN; WITH r AS (INSERT INTO operations_raw SELECT nextval('direct_id'), now() - random() * interval '3 s', 'purchase', 1001036, NULL,
  'electronics.audio.headphone', 'acme', 12.5, 1 + (random() * 500)::int, NULL FROM generate_series(1, 5) RETURNING *) INSERT INTO direct TABLE r; {}"""
VISITS = [
    DIRECT.format("COMMIT"), DIRECT.format("ROLLBACK"),
    "BEGIN; SAVEPOINT a; " + DIRECT.format("ROLLBACK TO a").removeprefix("BEGIN; ") + "; COMMIT",
    "SELECT count(*), max(cursor) FROM operations_per_minute_changes((SELECT max(xid) - 20 FROM (SELECT xid::text::bigint AS xid FROM millrace.batches) b)::text::xid8)",
    "SELECT count(*), sum(n) FROM operations_per_minute_final WHERE window_start > now() - interval '10 minutes'",
    "SELECT count(*) FROM millrace.streams; SELECT count(*) FROM millrace.models; SELECT count(*) FROM millrace.alerts WHERE raised > now() - interval '1 minute'",
    "SELECT count(*) FROM soak_visits; SELECT brand, sum(n) FROM soak_trend GROUP BY 1 ORDER BY 2 DESC LIMIT 3; SELECT * FROM soak_recent LIMIT 3",
    "SELECT count(*) FROM generate_series(1, 20) u, millrace.recommend_top_k('shop', u, 5)", SNAPSHOT,
    "SET statement_timeout = '20ms'; SELECT count(*) FROM operations_raw a, operations_raw b",
]


def visitors():
    """Sessions that come, do one thing, and go; some without taking leave."""
    chance = random.Random(2)
    while not over.wait(1):
        session = Steady("soak visitor")
        choice = chance.randrange(len(VISITS))
        session.run(VISITS[choice])
        count("sessions that came and went")
        if session.session is not None and chance.random() < 0.7:
            session.session.close()
            session.session = None
        session.close()


def trainer():
    session = Steady("soak trainer")
    while not over.wait(RETRAIN):
        begun = time.monotonic()
        answer = session.run("SELECT version, active, round(metric_value::numeric, 4), reason FROM millrace.retrain('shop')")
        if answer is not None:
            count("retrainings")
            say(f"retrained in {time.monotonic() - begun:.1f} s: {answer}")
            session.run("SELECT millrace.prune('shop', 3)")
            samples.append((now(), "model", "retraining s", time.monotonic() - begun))
    session.close()


# ---- disturbances ----

quick = Steady("soak disturber")


def end_backend(function, told, condition):
    """Until one of the sessions that were met has told so: one that is asked between two statements, or just has finished, is not disturbed."""
    def is_told():
        answer = quick.run(f"SELECT pid, {function}(pid) FROM pg_stat_activity WHERE {condition} AND pid <> pg_backend_pid()") or ""
        pids = [line.removesuffix("|t") for line in answer.splitlines() if line.endswith("|t")]
        time.sleep(0.2 if pids else 0)
        return bool(pids) and re.search(rf"\[(?:{'|'.join(pids)})\] .*{told}", (work / "cluster" / "log").read_text(errors="replace")) is not None
    within(10, is_told, f"been met by {function}, {condition}")


def terminate(condition):
    end_backend("pg_terminate_backend", "terminating connection due to administrator command", condition)


def cancel(condition):
    end_backend("pg_cancel_backend", "canceling statement due to user request", condition + " AND state = 'active'")


WRITER = "application_name = 'millrace' AND backend_type = 'client backend'"


def crash():
    """A backend is killed; the server ends all others and recovers."""
    def is_killed():
        pid = quick.run("SELECT pid FROM pg_stat_activity WHERE application_name = 'soak dashboard'")
        if pid:
            os.kill(int(pid.split()[0]), signal.SIGKILL)
        return bool(pid)
    within(10, is_killed, "been killed")


def restart_broker():
    subprocess.run([LIBRARY / "kafka", "kill", work / "kafka"], check=True)
    subprocess.run([LIBRARY / "kafka", "again", work / "kafka"], check=True)


DISTURBANCES = [
    (0.10, "ingester: SIGTERM", lambda: end_ingester(signal.SIGTERM)),
    (0.14, "ingester: SIGKILL", lambda: end_ingester(signal.SIGKILL)),
    (0.18, "the ingester's session is terminated", lambda: terminate(WRITER)),
    (0.22, "a backend: SIGKILL", crash),
    (0.27, "broker: SIGKILL, and started again", restart_broker),
    (0.45, "all statements of readers are cancelled", lambda: cancel("application_name LIKE 'soak %'")),
    (0.55, "the ingester's statement is cancelled", lambda: cancel(WRITER)),
    (0.62, "the ingester's session is terminated", lambda: terminate(WRITER)),
    (0.93, "ingester: SIGKILL", lambda: end_ingester(signal.SIGKILL)),
    (0.95, "a backend: SIGKILL", crash),
    (0.97, "ingester: SIGTERM", lambda: end_ingester(signal.SIGTERM)),
]


def disturb():
    for share, what, action in DISTURBANCES:
        if over.wait(max(0, share * SECONDS - now())):
            return
        mark(what)
        try:
            action()
        except (OSError, subprocess.SubprocessError) as error:
            count(f"unexpected: disturber: {error}")
    quick.close()


# ---- samples ----

def process(pid):
    """Private memory in MiB, file descriptors, CPU seconds; None when it has gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        kb = {line.split()[0]: int(line.split()[1]) for line in rollup.splitlines() if line.endswith("kB")}
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return kb["Pss_Anon:"] / 1024, kb["Pss:"] / 1024, len(os.listdir(f"/proc/{pid}/fd")), cpu
    except (OSError, KeyError, IndexError):
        return None


def lag():
    try:
        with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=2) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("millrace_lag{") or line.startswith("millrace_lag "))
    except OSError:
        return None


KEPT = ("operations_per_minute", "soak_recent", "soak_trend", "soak_visits")
STATE = "".join(f"SELECT '{name} (state rows)', (SELECT count(*) FROM {name}_state) + (SELECT count(*) FROM {name}_delta) UNION ALL " for name in KEPT) + """SELECT name || ' (state bytes)', state_bytes FROM millrace.streams WHERE kind IN ('aggregate', 'rollup')
UNION ALL SELECT 'database (dead rows)', sum(n_dead_tup) FROM pg_stat_user_tables
UNION ALL SELECT 'states (dead rows)', sum(n_dead_tup) FROM pg_stat_user_tables t WHERE EXISTS (SELECT FROM millrace.stream s WHERE t.relid IN (s.state, s.delta))
UNION ALL SELECT 'catalog (bytes)', sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'
UNION ALL SELECT 'millrace.' || relname || ' (bytes)', pg_total_relation_size(oid) FROM pg_class WHERE relnamespace = 'millrace'::regnamespace AND relkind = 'r'
UNION ALL SELECT 'millrace.batches (rows of a source)', max(n) FROM (SELECT count(*) AS n FROM millrace.batches GROUP BY source) b
UNION ALL SELECT 'millrace.model_version (rows)', count(*) FROM millrace.model_version
UNION ALL SELECT 'database (bytes)', pg_database_size(current_database())
UNION ALL SELECT 'operations_raw (rows)', sum(next_offset) FROM millrace.ingest_offsets
UNION ALL SELECT 'batch ' || source || ' (ms)', percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FROM millrace.batches WHERE started > now() - interval '{every} s' AND rows > 100 GROUP BY source
UNION ALL SELECT 'batch ' || source || ' (rows)', avg(rows) FROM millrace.batches WHERE started > now() - interval '{every} s' GROUP BY source"""


def pid_in(path):
    """None while the file is written again."""
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def sample(session):
    t = now()
    answer = session.run(STATE.format(every=EVERY))
    for line in (answer or "").splitlines():
        name, value = line.rsplit("|", 1)
        if value:
            subject, measure = name.rsplit(" (", 1)
            samples.append((t, subject, measure.rstrip(")"), float(value)))
    who = {ingester.pid: "ingester", producer.pid: "producer", pid_in(work / "kafka" / "pid"): "broker", pid_in(work / "cluster" / "data" / "postmaster.pid"): "postmaster"}
    who.pop(None, None)
    answer = session.run("SELECT pid, CASE WHEN backend_type = 'client backend' THEN 'backend: ' || application_name ELSE backend_type END FROM pg_stat_activity")
    for line in (answer or "").splitlines():
        pid, name = line.split("|", 1)
        who[int(pid)] = name
    for pid, name in who.items():
        figures = process(pid)
        if figures:
            for measure, value in zip(("private MiB", "Pss MiB", "descriptors", "CPU s"), figures):
                samples.append((t, f"{name} {pid}", measure, value))
    samples.append((t, "processes", "number", len(who)))
    behind = lag()
    if behind is not None:
        samples.append((t, "ingester", "lag", behind))
    cache = [f.stat().st_size for f in work.glob("cluster/data/base/*/pgsql_tmp_millrace.*")]
    samples.append((t, "cache", "files", len(cache)))
    samples.append((t, "cache", "bytes", sum(cache)))


# ---- what is read from them ----

def slope(points):
    """Theil and Sen: the median of the slopes of all pairs, of 150 points at most."""
    points = points[:: max(1, len(points) // 150)]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1:] if b[0] > a[0]]
    return statistics.median(slopes) if slopes else 0.0


def series():
    found = {}
    for t, subject, measure, value in samples:
        found.setdefault((subject, measure), []).append((t, value))
    return found


verdicts, summary = [], {}
KEPT_FOR_EVER = r"millrace\.(dead_letters|history_\d+)"  # until somebody removes them; as long as their users' rows


def verdict(good, text, grows=False):
    """grows: growth that a short run does not show."""
    if grows and SECONDS < 600 and not good:
        good, text = True, f"{text} # SKIP too short to judge"
    verdicts.append((0 if good else 1, text))


BEGIN, END = SECONDS / 3, 0.92 * SECONDS  # what is judged: settled, and before the last disturbances


def steady(key, text, factor, slack, unit, figure=statistics.median):
    """Of the second and of the last third of the time."""
    middle, last = ([v for t, v in found.get(key, []) if lo < t <= hi] for lo, hi in ((BEGIN, (BEGIN + END) / 2), ((BEGIN + END) / 2, END)))
    if not middle or not last:
        return verdict(False, f"{text}: not sampled", True)
    middle, last = figure(middle), figure(last)
    verdict(last <= middle * factor + slack, f"{text}: {middle:.4g}, then {last:.4g} {unit}", True)
    summary[text] = {"middle": middle, "last": last, "unit": unit}


def floor(values):
    """The lowest tenth.  What else runs on the machine adds to a figure and never takes from it, and hardly all the time; a cost that has grown is
    there in the quietest minute, too.  In an hour beside a load of 10 to 25 medians of CPU went up by a fifth and came back, the lowest tenth of
    minutes by 2 % and -3 %; slopes did by whatever the neighbours did last."""
    return sorted(values)[len(values) // 10]


def size(key, text, slack, unit):
    """Sizes do not depend on the machine's load: the slope of all of the time, a tenth at most."""
    points = [p for p in found.get(key, []) if BEGIN < p[0] <= END]
    if len(points) < 2:
        return verdict(False, f"{text}: not sampled", True)
    middle, growth = statistics.median(v for _, v in points), slope(points) * (points[-1][0] - points[0][0])
    verdict(growth <= 0.1 * middle + slack, f"{text}: {middle:.4g} {unit}, {growth:+.4g} in {points[-1][0] - points[0][0]:.0f} s", True)
    summary[text] = {"level": middle, "growth": growth, "unit": unit}


def judge():
    longest = {}
    for (subject, measure), points in found.items():
        life = points[-1][0] - points[0][0]
        if measure != "private MiB" or life < SECONDS / 5:
            continue
        name = subject.rsplit(" ", 1)[0]
        settled = [p for p in points if p[0] > points[0][0] + life / 3]
        growth = slope(settled) * (settled[-1][0] - settled[0][0])
        level = statistics.median(v for _, v in settled)
        longest.setdefault(name, []).append((growth, level, life, max(v for _, v in points)))
    for name, lives in sorted(longest.items()):
        growth, level, life, peak = max(lives)
        fds = max((statistics.median([v for t, v in points[-len(points) // 4:]]) - statistics.median([v for t, v in points[len(points) // 4: len(points) // 2]])
                   for (subject, measure), points in found.items()
                   if measure == "descriptors" and subject.rsplit(" ", 1)[0] == name and points[-1][0] - points[0][0] >= SECONDS / 5), default=0)
        summary[name] = {"private MiB": level, "growth MiB": growth, "peak MiB": peak, "longest life s": max(l[2] for l in lives), "more descriptors": fds}
        if name == "broker":
            continue
        # PostgreSQL's own processes open files of tables one by one, up to max_files_per_process.
        verdict(growth <= max(4, 0.1 * level), f"{name}: {level:.1f} MiB private, {growth:+.2f} in the last two thirds of {life:.0f} s (peak {peak:.1f})", True)
        if name in ("ingester", "producer") or name.startswith("backend"):
            verdict(fds <= 4, f"{name}: {fds:+.0f} file descriptors", True)
    verdict("ingester" in longest and any(n.startswith("backend: millrace") for n in longest), "of the ingester and of its backend one lived long enough to be judged", True)
    # CPU of the ingester and of its backends for each 1,000 events: by minutes, as a sample has one batch more or less.
    stored = dict(found[("operations_raw", "rows")])
    for name in ("ingester", "backend: millrace"):
        minutes = {}
        for (subject, measure), points in found.items():
            if measure == "CPU s" and subject.startswith(name):
                for (t0, c0), (t1, c1) in zip(points, points[1:]):
                    if t0 in stored and t1 in stored and stored[t1] > stored[t0]:
                        minutes.setdefault(t1 // 60 * 60 + 30, []).append((c1 - c0, stored[t1] - stored[t0]))
        found[(name, "CPU ms per 1,000 events")] = sorted((t, 1e6 * sum(c for c, _ in parts) / sum(n for _, n in parts)) for t, parts in minutes.items())
        steady((name, "CPU ms per 1,000 events"), f"CPU of {'its sessions' if 'backend' in name else 'the ingester'} for 1,000 events", 1.1, 0, "ms", floor)
    for source in ("operations_raw", "operations"):
        steady((f"batch {source}", "ms"), f"a batch of {source}, the streams' time", 1.25, 0, "ms", floor)  # no less: also of a quiet minute the time depends on who else waits for the disk
    steady(("ingester", "lag"), "messages that wait", 1.5, 3 * RATE, "")
    for name in ("soak_recent", "soak_trend", "soak_visits"):
        for measure in ("rows", "bytes"):
            size((name, f"state {measure}"), f"states of {name}, {measure}", 100 if measure == "rows" else 1 << 18, measure)
    steady(("states", "dead rows"), "dead rows of states", 1.5, 20 * RATE, "")
    steady(("catalog", "bytes"), "PostgreSQL's catalog", 1.1, 1 << 20, "bytes")
    for name in sorted({s for s, m in found if s.startswith("millrace.") and m == "bytes"}):
        if max(v for _, v in found[(name, "bytes")]) > 1 << 20 and not re.fullmatch(KEPT_FOR_EVER, name):
            size((name, "bytes"), name, 1 << 20, "bytes")
    steady(("cache", "files"), "cache files", 1, 1, "")
    steady(("cache", "bytes"), "cache files", 1.25, 1 << 20, "bytes")
    steady(("millrace.model_version", "rows"), "versions of models", 1.25, 1, "")
    steady(("millrace.batches", "rows of a source"), "millrace.batches", 1.05, 60, "rows of a source")
    steady(("processes", "number"), "processes", 1, 2, "")
    for what in ("dashboard queries", "calls of recommend_top_k", "sessions that came and went", "retrainings"):
        verdict(counts.get(what, 0) > 1, f"{what}: {counts.get(what, 0)}")
    wanted = [0 if "SIGTERM" in what else -9 for _, what, _ in DISTURBANCES if what.startswith("ingester: ")]
    verdict(statuses == wanted, f"the ingester ended when it was told to, and only then: {statuses}, expected {wanted}")
    unexpected = [f"{n} times {name}" for name, n in counts.items() if name.startswith("unexpected")]
    verdict(not unexpected, f"nobody was told an error that was not provoked {unexpected or ''}".replace("\n", " "))


def draw():
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"svg.hashsalt": "millrace", "svg.fonttype": "none", "font.size": 8, "axes.grid": True, "grid.alpha": 0.3})
    panels = [("private memory, MiB", [(s, p) for (s, m), p in found.items() if m == "private MiB" and not s.startswith(("broker", "backend: soak visitor", "backend: pg_cron"))]),
              ("file descriptors", [(s, p) for (s, m), p in found.items() if m == "descriptors" and s.startswith(("ingester", "backend: millrace", "backend: soak d", "backend: soak r"))]),
              ("a batch: the streams' time, ms", [(s, p) for (s, m), p in found.items() if m == "ms"]),
              ("CPU ms per 1,000 events", [(s, p) for (s, m), p in found.items() if m == "CPU ms per 1,000 events"]),
              ("messages that wait", [(s, p) for (s, m), p in found.items() if m == "lag"]),
              ("state rows", [(s, p) for (s, m), p in found.items() if m == "state rows"]),
              ("dead rows", [(s, p) for (s, m), p in found.items() if m == "dead rows"]),
              ("cache files, MiB", [("all", [(t, v / 2 ** 20) for t, v in found.get(("cache", "bytes"), [])])])]
    figure, axes = plt.subplots(4, 2, figsize=(11, 12), sharex=True)
    colors = {}
    for ax, (title, lines) in zip(axes.flat, panels):
        names = {}
        for subject, points in sorted(lines):
            name = subject.rsplit(" ", 1)[0] if subject.rsplit(" ", 1)[-1].isdigit() else subject
            color = colors.setdefault(name, matplotlib.colormaps["tab20"](len(colors) % 20))
            ax.plot([t / 60 for t, _ in points], [v for _, v in points], color=color, linewidth=0.9, label=None if name in names else name.removeprefix("backend: "))
            names[name] = True
        if "memory" in title:
            ax.set_yscale("log")
        for t, _ in marks:
            ax.axvline(t / 60, color="grey", linewidth=0.5, linestyle=":")
        ax.set_title(title, fontsize=9)
        ax.legend(fontsize=5, loc="upper left", ncol=2)
    for ax in axes[-1]:
        ax.set_xlabel("minutes; dotted: something was ended")
    figure.tight_layout()
    figure.savefig(out / "soak.svg", metadata={"Date": None})


# ---- the run ----

def ended(*_):
    raise SystemExit(143)


def thread_ended(args):
    count(f"unexpected: {args.thread.name}: {args.exc_value!r}")
    threading.__excepthook__(args)


def run():
    start_ingester()
    start_producer()
    sampler = Steady("soak sampler")
    for actor in actors:
        actor.start()
    next_sample, producer_ended = 0.0, False
    while now() < SECONDS:
        time.sleep(max(0, min(next_sample, SECONDS) - now()))
        sample(sampler)
        next_sample = max(next_sample + EVERY, now())
        if producer.poll() is not None and not producer_ended:
            producer_ended = True
            count(f"unexpected: the producer has ended: {(work / 'producer.log').read_text()[-300:]}")
    mark("the producer is stopped")
    producer.send_signal(signal.SIGTERM)
    producer.wait()
    # What is in the topic is taken.
    caught_up, deadline = False, now() + 300
    ends = lambda: sum(int(line.split()[-1]) for line in subprocess.run(
        ["kcat", "-Q", "-b", os.environ["BROKERS"]] + [f"-toperations:{i}:-1" for i in range(4)], capture_output=True, text=True).stdout.splitlines())
    while now() < deadline and not caught_up:
        time.sleep(1)
        caught_up = sampler.run("SELECT sum(next_offset) FROM millrace.ingest_offsets") == str(ends())
    verdict(caught_up, f"all is stored {now() - marks[-1][0]:.1f} s after the producer has stopped")
    over.set()
    for actor in actors:
        actor.join(180)
    sample(sampler)
    sampler.close()
    ingester.send_signal(signal.SIGTERM)
    verdict(ingester.wait(30) == 0, "the ingester ends with status 0")


def clean_up():
    """However it ends: nobody starts anything any more, and nothing is left."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    over.set()
    for actor in actors:
        if actor.name in ("keep_ingester", "disturb") and actor.is_alive():
            actor.join(90)
    for child in (producer, ingester):
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()


signal.signal(signal.SIGTERM, ended)
threading.excepthook = thread_ended
os.environ["PGAPPNAME"] = "soak"
actors = [threading.Thread(target=f, name=f.__name__, daemon=True) for f in (keep_ingester, dashboard, recommender, visitors, trainer, disturb)]
try:
    run()
finally:
    clean_up()
found = series()
with open(out / "samples.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(("seconds", "subject", "measure", "value"))
    writer.writerows((f"{t:.1f}", s, m, f"{v:.6g}") for t, s, m, v in samples)
judge()
draw()
messages = [line for line in (work / "producer.log").read_text().splitlines() if "messages" in line][-1:]
summary["counts"], summary["seconds"], summary["rate"], summary["producer"] = counts, SECONDS, RATE, messages
summary["disturbances"] = [f"{t:.0f} s: {text}" for t, text in marks]
(out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
(work / "verdicts").write_text("".join(f"{status}\t{text}\n" for status, text in verdicts))
for name, n in sorted(counts.items()):
    print(f"# {n:8d} {name[:200]}")
