"""Cases of model training: speed beside `implicit`, Spark and the machine's sgemm, and quality beside what others recommend."""
import csv, json, os, statistics, subprocess, tarfile, threading, time
from pathlib import Path

from measure import ROOT, ROUNDS, Session, beside, interleaved, process_cpu, report, run, sql

BUILD = Path(os.environ.get("MILLRACE_CACHE", ROOT / "build"))
QUIET = "SET client_min_messages = warning;"


class Missing(RuntimeError):
    """A peer that cannot be had: what is measured against it is not met."""


# Whose work a function of peers.py is, by a part of its name.
PACKAGES = {"implicit": "implicit", "spark": "pyspark", "sklearn": "scikit-learn", "silhouette": "scikit-learn", "ease": "numpy", "ials": "numpy", "sgemm": "numpy"}


class Peers:
    """A process of peers.py."""

    def __init__(self):
        made = subprocess.run([ROOT / "tests/lib/venv", "bench-venv", ROOT / "tests/bench/requirements.txt"], text=True, capture_output=True)
        if made.returncode:
            raise Missing("the peers cannot be installed: " + (made.stderr.strip().splitlines() or ["?"])[-1])
        lines = (ROOT / "tests/bench/requirements.txt").read_text().split()
        self.versions = dict(line.split("==") for line in lines)
        # implicit asks for a BLAS of one thread, its own threads being as many as there are cores.
        self.process = subprocess.Popen([Path(made.stdout.strip()) / "bin/python", "-B", ROOT / "tests/bench/peers.py"], text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def __getattr__(self, name):
        def call(**arguments):
            for part, package in PACKAGES.items():
                if part in name:
                    beside(package, self.versions[package], "PyPI")
            self.process.stdin.write(json.dumps({"do": name, **arguments}, default=str) + "\n")
            answer = json.loads(self.process.stdout.readline() or '{"error": "the process has died"}')
            if "error" in answer:
                raise Missing(f"{name}: {answer['error']}")
            return answer["ok"]
        return call


def arguments(settings):
    return "".join(f", {name} => {value!r}" for name, value in settings.items())


class Training:
    """One training, watched from outside: its iterations (seconds, CPU seconds of the backend with its threads), the seconds before the
    first and behind the last of them, the peak of the backend's anonymous memory."""
    function = "train_als"

    def __init__(self, query, **settings):
        psql = subprocess.Popen(["psql", "-AtXq", "-v", "ON_ERROR_STOP=1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)
        psql.stdin.write("SELECT pg_backend_pid();\n")
        pid = psql.stdout.readline().strip()
        self.notices, self.errors, self.peak = [], [], 0
        watch = threading.Thread(target=self.watch, args=(psql.stderr, pid))
        measure = threading.Thread(target=self.measure, args=(psql, pid))
        watch.start()
        measure.start()
        began, cpu_began = time.monotonic(), process_cpu(pid)
        psql.stdin.write(f"SELECT (millrace.{self.function}('bench', $q${query}$q$, tolerance => 0{arguments(settings)})).version;\n")
        self.version = psql.stdout.readline().strip()
        ended = time.monotonic()
        psql.stdin.close()
        psql.wait()
        watch.join()
        measure.join()
        if not self.version or not self.notices:
            raise RuntimeError("".join(self.errors) or "no notice of an iteration")
        took = [float(s) for s in sql(f"SELECT seconds FROM millrace.trainings WHERE model = 'bench' AND version = {self.version} ORDER BY iteration").splitlines()]
        sql("SELECT millrace.prune('bench', 1)")
        cpu = [b[1] - a[1] for a, b in zip(self.notices, self.notices[1:])]
        # The first iteration's CPU time cannot be told from the reading's.
        self.iterations = list(zip(took[1:], cpu)) or [(took[0], float("nan"))]
        self.iteration = tuple(statistics.median(column) for column in zip(*self.iterations))
        self.reading = (self.notices[0][0] - took[0] - began, self.notices[0][1] - self.iteration[1] - cpu_began)
        self.storing = ended - self.notices[-1][0]
        self.seconds = ended - began

    def watch(self, lines, pid):
        for line in lines:
            if "iteration" in line:
                self.notices.append((time.monotonic(), process_cpu(pid)))
            self.errors.append(line)

    def measure(self, psql, pid):
        while psql.poll() is None:
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                break
            self.peak = max(self.peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)
            time.sleep(0.01)


MOMENTS = 0.2, 1, 2, 3, 4, 5, 7, 9  # seconds after a training's begin


def cancelled(canceller, query, moment):
    """Seconds from a request to cancel a training, so long after its begin, to its end."""
    session, ended = Session(), []

    def train():
        try:
            session.run(f"SELECT millrace.train_als('bench', $q${query}$q$, rank => 64, iterations => 50)")
        except RuntimeError:
            ended.append(time.monotonic())
    thread = threading.Thread(target=train)
    thread.start()
    time.sleep(moment)
    asked = time.monotonic()
    canceller.run(f"SELECT pg_cancel_backend({session.pid})")
    thread.join()
    return ended[0] - asked


def ratio(case, what, unit, rounds, target=""):
    """rounds: pairs (ours, peer), each seconds and CPU seconds."""
    if not rounds:
        return
    ours, peer = ([tuple(statistics.median(column) for column in zip(*side))] for side in zip(*rounds))
    report(case, what, unit, ours[0], peer[0], target, [a[0] / b[0] for a, b in rounds])


def case_als(work):
    """Implicit ALS, rank 64, 15 iterations, on the purchases of Online Retail"""
    sql("CREATE TABLE retail_purchases (customer bigint, item text)")
    with tarfile.open(ROOT / "tests/data/retail-by-day.tar.xz") as archive:
        rows = [row for member in archive.getmembers() if member.isfile()
                for row in csv.DictReader(archive.extractfile(member).read().decode().splitlines())]
    (work / "purchases.csv").write_text("".join(f"{float(r['CustomerID']):.0f},{r['StockCode']}\n" for r in rows
                                                if r["CustomerID"] and int(r["Quantity"]) > 0))
    run("psql", "-Xq", "-c", f"\\copy retail_purchases FROM '{work / 'purchases.csv'}' CSV")
    train = lambda threads: lambda: sql(f"{QUIET} SELECT millrace.train_als('bench', 'retail_purchases', rank => 64, iterations => 15, threads => {threads})")
    interleaved("als", "all threads / one", "s, 15 iterations", train(0), train(1))


def gflops(pairs, users, items, rank, seconds):
    """Of the exact algorithm in its primal form."""
    return (2 * pairs * rank * (rank + 1) + (users + items) * rank**3 / 3) / seconds / 1e9


MOVIELENS = 138493, 26744, 20000263


def load_movielens(peers, work, *tables):
    """20 M synthetic ratings of MovieLens' shape in each of these tables that is not there: by_user and shuffled (u, i, value), by_time
    (at, u, i, value) in 305 partitions of a day."""
    work.chmod(0o755)
    missing = [name for name in tables if sql(f"SELECT to_regclass('{name}') IS NULL") == "t"]
    print("#", peers.movielens(cache=BUILD / "als20m.npy", **dict(zip(("users", "items", "pairs"), MOVIELENS)), folder=work, files=missing), flush=True)
    for name in missing:
        if name == "by_time":
            sql("""CREATE TABLE by_time (at timestamptz NOT NULL, u int, i int, value real) PARTITION BY RANGE (at);
                DO $$ BEGIN FOR n IN 0 .. 304 LOOP
                    EXECUTE format('CREATE TABLE by_time_%s PARTITION OF by_time FOR VALUES FROM (%L) TO (%L)', n, timestamptz '2024-01-01' + n * interval '1 day',
                        timestamptz '2024-01-02' + n * interval '1 day');
                END LOOP; END $$""")
            sql(f"COPY by_time FROM '{work / name}' (FORMAT binary)")
        else:
            sql(f"BEGIN; CREATE TABLE {name} (u int, i int, value real); COPY {name} FROM '{work / name}' (FORMAT binary, FREEZE); COMMIT")
        (work / name).unlink()
    sql("CHECKPOINT")


def case_als20m(work):
    """Implicit ALS on 20 M synthetic ratings of MovieLens' shape, beside `implicit`.  Its Cholesky is exact, as ours; its conjugate gradients take 3 steps a row, and do not reach the same loss in as many iterations"""
    users, items, pairs = MOVIELENS
    with Peers() as peers:
        load_movielens(peers, work, "by_user", "shuffled")
        ours, cg, cholesky = {64: [], 128: []}, {64: [], 128: []}, []
        reading, shuffled, machine = [], [], []
        for n in range(ROUNDS + 1):
            for rank in (64, 128):
                ours[rank].append(Training("SELECT u, i, value FROM by_user", rank=rank, iterations=3))
                cg[rank].append(tuple(peers.implicit_iteration(rank=rank, cg=True)))
                machine.append(peers.sgemm())
            if n < 3:
                cholesky.append(tuple(peers.implicit_iteration(rank=64, cg=False)))
            session = Session()
            session.run("SET max_parallel_workers_per_gather = 0")
            reading.append((ours[64][-1].reading, session.timed("SELECT sum(value) FROM by_user")))
            if n < 3:
                shuffled.append((Training("SELECT u, i, value FROM shuffled", rank=1, iterations=1).reading, session.timed("SELECT sum(value) FROM shuffled")))
            session.close()
        peers.forget()
        session = Session()
        cancels = [cancelled(session, "SELECT u, i, value FROM by_user", moment) for moment in MOMENTS]
        session.close()
    report("als20m", f"a cancel at {len(MOMENTS)} moments, the worst / 0.1 s", "s", max(cancels), 0.1, "", [took / 0.1 for took in cancels])
    for rank in (64, 128):
        ratio("als20m", f"rank {rank} / implicit's conjugate gradients", "s, 1 iteration", [(a.iteration, b) for a, b in zip(ours[rank], cg[rank])][1:])
    ratio("als20m", "rank 64 / implicit's Cholesky", "s, 1 iteration", [(a.iteration, b) for a, b in zip(ours[64], cholesky)][1:])
    rates = {name: statistics.median(m[name] for m in machine) for name in machine[0]}
    report("als20m", "sgemm, a thread per core: libopenblas.so.0 / NumPy's", "GFLOP/s", rates["libopenblas.so.0"], rates["numpy"])
    for rank in (64, 128):
        rate = [gflops(pairs, users, items, rank, t.iteration[0]) for t in ours[rank]][1:]
        report("als20m", f"rank {rank}, flops of the primal algorithm / sgemm", "GFLOP/s", statistics.median(rate), max(rates.values()), "", [r / max(rates.values()) for r in rate])
    roof = gflops(pairs, users, items, 128, 1) / max(rates.values())
    report("als20m", "rank 128, flops of the primal algorithm at the rate of sgemm / implicit's conjugate gradients", "s, 1 iteration", roof, statistics.median(b[0] for b in cg[128][1:]))
    ratio("als20m", "reading by user, into sparse rows / SELECT sum(value)", "s, 20 M rows", reading[1:])
    ratio("als20m", "reading shuffled, into sparse rows / SELECT sum(value)", "s, 20 M rows", shuffled[1:])
    for rank in (64, 128):
        report("als20m", f"rank {rank}, storing the model / 2 s", "s", statistics.median(t.storing for t in ours[rank][1:]), 2)
        peak = max(t.peak for t in ours[rank])
        report("als20m", f"rank {rank}, peak memory / 3 x (both CSR + factors)", "MB", peak / 1e6,
               3 * (2 * 8 * pairs + 8 * (users + items) + 4 * rank * (users + items)) / 1e6)
        report("als20m", f"rank {rank}, peak memory / 2 GB", "MB", peak / 1e6, 2000)


def load_journey(peers, work):
    """Table journey: all purchases of Complete Journey, top: those of the 5,000 products."""
    work.chmod(0o755)
    print("#", peers.journey(folder=work), flush=True)
    sql(f"DROP TABLE IF EXISTS journey, categories; CREATE TABLE journey (row int, household int, product int, quantity int, top bool);"
        f"COPY journey FROM '{work / 'journey.csv'}' CSV; ANALYZE journey;"
        f"CREATE TABLE categories (product int, category text); COPY categories FROM '{work / 'categories.csv'}' CSV; ANALYZE categories")


def case_journey(work):
    """Implicit ALS, rank 64, on Complete Journey, row counts of all 68 k products, beside `implicit` and Spark local[2]"""
    with Peers() as peers:
        load_journey(peers, work)
        blocks = {10: "its default of 10 blocks", 4: "4 blocks"}
        ours, cg, cholesky, spark = [], [], [], {n: [] for n in blocks}
        for n in range(ROUNDS + 1):
            ours.append(Training("SELECT household, product FROM journey", rank=64, iterations=10))
            for m in blocks:
                spark[m].append(peers.spark_seconds(folder=work, rank=64, maxIter=10, regParam=0.01, implicitPrefs=True, numUserBlocks=m, numItemBlocks=m))
            cg.append(tuple(statistics.median(column) for column in zip(*(peers.implicit_iteration(rank=64, cg=True) for _ in range(3)))))
            cholesky.append(tuple(peers.implicit_iteration(rank=64, cg=False)))
        ratio("journey", "rank 64 / implicit's conjugate gradients", "s, 1 iteration", [(a.iteration, b) for a, b in zip(ours, cg)][1:])
        ratio("journey", "rank 64 / implicit's Cholesky", "s, 1 iteration", [(a.iteration, b) for a, b in zip(ours, cholesky)][1:])
        for m, what in blocks.items():
            for took, part in (([t.seconds for t in ours[1:]], "reading, 10 iterations, storing"), ([10 * t.iteration[0] for t in ours[1:]], "10 iterations")):
                report("journey", f"{part} / Spark's fit, {what}", "s", statistics.median(took), statistics.median(spark[m][1:]), "", [t / fit for t, fit in zip(took, spark[m][1:])])


def case_loss(work):
    """The objective after 15 iterations on Complete Journey, and an independent float64 implementation's that goes on from our first iteration"""
    with Peers() as peers:
        load_journey(peers, work)
        for settings in (dict(alpha=1.0, unobserved_weight=0.3, regularization=0.01, regularization_exponent=1.0),
                         dict(alpha=1.0, unobserved_weight=1.0, regularization=0.1, regularization_exponent=0.5)):
            train = lambda iterations: float(sql(f"""{QUIET} SELECT (millrace.train_als('bench', 'SELECT household, product FROM journey', rank => 64,
                iterations => {iterations}, tolerance => 0{arguments(settings)})).loss"""))
            train(1)
            export("bench", "item", work / "items")
            theirs = peers.ials_loss(items_path=work / "items", rank=64, iterations=14, unobserved=settings["unobserved_weight"], alpha=settings["alpha"],
                                     regularization=settings["regularization"], exponent=settings["regularization_exponent"])
            mine = train(15)
            report("loss", f"rank 64, unobserved {settings['unobserved_weight']}, exponent {settings['regularization_exponent']}: ours / float64", "loss", mine, theirs)
            print(f"# ratio {mine / theirs:.7f}", flush=True)


def export(model, side, path):
    with open(path, "wb") as out:
        subprocess.run(["psql", "-AtXq", "-v", "ON_ERROR_STOP=1", "-c", f"COPY (SELECT id::bigint, factor FROM millrace.{side}_factors('{model}')) TO STDOUT BINARY"],
                       stdout=out, check=True)


def case_rmse(work):
    """Explicit ALS, rank 10, on the logarithm of how often a household buys a product, beside Spark: the error on a fifth of the pairs"""
    with Peers() as peers:
        load_journey(peers, work)
        sql("""CREATE TABLE explicit AS SELECT household, product, ln(1 + sum(greatest(quantity, 1)))::real AS value, millrace.split(household || ' ' || product, 0.8) AS train
                FROM journey WHERE top GROUP BY 1, 2;
            CREATE VIEW train AS SELECT household, product, value FROM explicit WHERE train;
            CREATE VIEW test AS SELECT household, product, value FROM explicit WHERE NOT train
                AND household IN (SELECT household FROM train) AND product IN (SELECT product FROM train)""")
        for name in ("train", "test"):
            run("psql", "-Xq", "-c", f"\\copy (SELECT * FROM {name}) TO '{work / name}.csv' CSV")
        for what, settings in (("explicit", {}), ("explicit, nonnegative", {"nonnegative": True})):
            theirs = peers.spark_rmse(folder=work, rank=10, maxIter=10, regParam=0.1, **settings)
            sql(f"{QUIET} SELECT millrace.train_als('bench', 'train', implicit => false, rank => 10, iterations => 10, regularization => 0.1{arguments(settings)})")
            mine = float(sql("SELECT value FROM millrace.evaluate('bench', 'test') WHERE metric = 'rmse'"))
            report("rmse", f"{what}: ours / Spark", "RMSE", mine, theirs)


# What is searched for our parameters, around what was found when more was searched: for new items a large unobserved weight, and values relative
# to a power of how many products the household has; for repeats a small weight, a large rank and a light penalty.
NEW_GRID = {"iterations": [10], "rank": 128, "own_history": 0, "unobserved_weight": [1.5, 2, 3], "regularization": [0.006, 0.0075, 0.009], "regularization_exponent": 1}
NEW_POWERS = [0.4, 0.5, 0.6]
REPEAT_GRID = {"iterations": 6, "rank": 256, "own_history": 0, "value_transform": ["none", "log1p"], "alpha": [0.1, 0.25], "unobserved_weight": [0.02, 0.05],
               "regularization": 0.1, "regularization_exponent": 0.5}
IMPLICIT_GRID = [dict(values=values, factors=factors, regularization=regularization)
                 for values in ("none", "log1p", "binary") for factors in (64, 128) for regularization in (3.0, 10.0, 30.0, 60.0)]
SPARK_GRID = [dict(values="none", rank=64, maxIter=10, implicitPrefs=True, regParam=regularization) for regularization in (0.05, 0.1, 0.2)]
SPARK_USERS = dict(rank=10, maxIter=10, regParam=0.1)
SPLITS = 5


def rows(*conditions):
    """A query of purchases, one row each."""
    return " AND ".join(["SELECT household, product FROM journey WHERE top", *conditions])


def shares(power):
    """The same, each row worth 100 over the number of the household's products, to this power."""
    return lambda *conditions: f"""SELECT household, product, n * power(100.0 / count(*) OVER (PARTITION BY household), {power})
        FROM (SELECT household, product, count(*) AS n FROM ({rows(*conditions)}) AS r GROUP BY household, product) AS p"""


FINALISTS = 3  # that are tried on all folds, being the best on the first


def best(folds, grid, measure):
    """The best parameters for new items and for any: those that are best on the first fold, by their means over all; each fold is a function that makes the peers use it."""
    of_fold = []
    for fold in folds:
        fold()
        tried = range(len(grid)) if not of_fold else {n for kind in (0, 1) for n in sorted(of_fold[0], key=lambda n: -of_fold[0][n][kind])[:FINALISTS]}
        of_fold.append({n: measure(**grid[n]) for n in tried})
    return [max(((statistics.mean(figures[n][kind] for figures in of_fold), grid[n]) for n in of_fold[-1]), key=lambda t: t[0]) for kind in (0, 1)]


def tuned(folds, grid, new):
    """The same of a grid by tune_als, each fold being a query to train on and one to validate with."""
    train, validation = folds[0]
    tune = lambda train, validation, grid: sql(f"""{QUIET} SELECT run FROM millrace.tune_als('bench', $q${train}$q$, '{json.dumps(grid)}', 'precision', 5,
        validation => $q${validation}$q$, exclude_seen => {new})""")
    run_of_all = tune(train, validation, grid)
    tried = []
    for line in sql(f"SELECT value, parameters FROM millrace.tunings WHERE run = {run_of_all} AND value IS NOT NULL ORDER BY value DESC, parameters LIMIT {FINALISTS}").splitlines():
        value, parameters = line.split("|")
        settings = {name: json.loads(parameters)[name] for name in grid}
        more = [sql(f"SELECT value FROM millrace.tunings WHERE run = {tune(*fold, {name: [value] for name, value in settings.items()})}") for fold in folds[1:]]
        tried.append((statistics.mean(map(float, [value, *more])), settings))
    return max(tried, key=lambda t: t[0])


def evaluated(train, test, settings):
    """Precision at 5 of a training: of new items, and of any."""
    sql(f"{QUIET} SELECT millrace.train_als('bench', $q${train}$q${arguments(settings)}); SELECT millrace.prune('bench', 1)")
    return [float(sql(f"SELECT coalesce(value, 'NaN') FROM millrace.evaluate('bench', $q${test}$q$, 5, {new}) WHERE metric = 'precision'")) for new in (True, False)]


EASE_OWN_GRID = [("none", 500), ("none", 1000), ("log1p", 200), ("binary", 500)]
EASE_OWN_WEIGHTS = [0.3, 0.5, 0.7, 1, 1.4, 2]


def write_splits(work, flags):
    """top.csv, as quality_load() wants it."""
    with open(work / "top.csv", "w") as out:
        columns = ", ".join(f"{flag}::int" for flag in flags)
        subprocess.run(["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-c", f"COPY (SELECT household, product, quantity, {columns} FROM journey WHERE top) TO STDOUT CSV"], stdout=out, check=True)


def listed(train, test, exclude_seen, more=""):
    """Precision at 5 of what recommend_top_k_for gives, computed from its rows."""
    relevant = f"SELECT DISTINCT household, product FROM ({test}) AS t" + (f" EXCEPT SELECT household, product FROM ({train}) AS s" if exclude_seen else "")
    return float(sql(f"""{QUIET} WITH relevant AS ({relevant}), users AS (SELECT DISTINCT household FROM relevant WHERE household IN (SELECT household FROM ({train}) AS s)),
        list AS (SELECT user_id, item_id FROM millrace.recommend_top_k_for('bench', 'SELECT DISTINCT household FROM journey WHERE top', 5, {exclude_seen}{more}))
        SELECT (SELECT count(*) FROM list JOIN users ON household = user_id JOIN relevant AS r ON r.household = user_id AND r.product = item_id) / 5.0 / count(*) FROM users"""))


def case_repeats(work):
    """Precision at 5 of what a user gets who may get again what he has, all settings being ours by default, means over five half/half splits; what is fitted of the peers is chosen on four divisions of the first split's training half"""
    with Peers() as peers:
        load_journey(peers, work)
        halves = [f"millrace.split(row, 0.5, {seed})" for seed in range(1, SPLITS + 1)]
        flags = [*halves, *(f"millrace.split(row, {part}, {seed})" for part in (0.8, 0.5) for seed in (101, 102))]
        write_splits(work, flags)
        print("#", peers.quality_load(path=work / "top.csv"), flush=True)
        sums = {}
        for column in range(5, len(flags)):
            peers.quality_use(train=[(0, True), (column, True)], test=[(0, True), (column, False)])
            for values, regularization in EASE_OWN_GRID:
                for weight, figure in zip(EASE_OWN_WEIGHTS, peers.precision_ease_own(values=values, regularization=regularization, weights=EASE_OWN_WEIGHTS)):
                    sums[values, regularization, weight] = sums.get((values, regularization, weight), 0) + figure / 4
        values, regularization, weight = max(sums, key=sums.get)
        print(f"# validation: EASE on {values}, {regularization}, + {weight} x own history: {sums[values, regularization, weight]:.4f}", flush=True)
        figures = {}
        for n, half in enumerate(halves):
            peers.quality_use(train=[(n, True)], test=[(n, False)])
            train, test = rows(half), rows("NOT " + half)
            note = lambda name, figure: figures.setdefault(name, []).append(figure)
            note("own history", peers.precision_own()[1])
            note("EASE + own history", peers.precision_ease_own(values=values, regularization=regularization, weights=[weight])[0])
            note("EASE, new items", peers.precision_ease(regularization=500)[0])
            for new, figure in zip((True, False), evaluated(train, test, {})):
                what = ", new items" if new else ""
                sql(f"{QUIET} SELECT millrace.set_item_features('bench', 'SELECT product, category FROM categories')")
                note("ours" + what, listed(train, test, new))
                assert abs(figure - figures["ours" + what][-1]) < 1e-6, f"evaluate() says {figure}, the lists {figures['ours' + what][-1]}"
                note("ours" + what + ", one of a category", listed(train, test, new, ", max_per_category => 1"))
            print("#", {name: round(of_split[-1], 4) for name, of_split in figures.items()}, sql("SELECT metrics->'own_history' FROM millrace.models WHERE name = 'bench'"), flush=True)
        mean = {name: statistics.mean(of_split) for name, of_split in figures.items()}
        over = lambda what, name, peer, more=0.0: report("repeats", what, "precision@5", mean[name], mean[peer] + more, "", [a / (b + more) for a, b in zip(figures[name], figures[peer])])
        over("ours / the household's own history + 0.01", "ours", "own history", 0.01)
        over("ours / EASE + own history", "ours", "EASE + own history")
        over("at most one of a category / ours", "ours, one of a category", "ours")
        over("new items: ours / EASE (case quality has tuned ones)", "ours, new items", "EASE, new items")
        over("new items: at most one of a category / ours", "ours, new items, one of a category", "ours, new items")


def case_quality(work):
    """Precision at 5 on the 5,000 products of Complete Journey, means over five half/half splits; parameters are chosen on two divisions of the first split's training half (half/half, 80/20), never on a test half"""
    with Peers() as peers:
        load_journey(peers, work)
        halves = [f"millrace.split(row, 0.5, {seed})" for seed in range(1, SPLITS + 1)]
        flags = [*halves, "millrace.split(row, 0.5, 101)", "millrace.split(row, 0.8, 101)"]
        write_splits(work, flags)
        print("#", peers.quality_load(path=work / "top.csv"), flush=True)
        folds = [lambda column=column: peers.quality_use(train=[(0, True), (column, True)], test=[(0, True), (column, False)]) for column in range(5, len(flags))]
        queries = lambda values: [(values(halves[0], flag), rows(halves[0], "NOT " + flag)) for flag in flags[5:]]

        # What is best on validation parts of the first training half
        print("# validation, new items and repeats: EASE {:.4f} {:.4f}".format(*(f[0] for f in best(folds, [dict(regularization=500)], peers.precision_ease))))
        tries = [(tuned(queries(shares(power)), NEW_GRID, True), power) for power in NEW_POWERS]
        (new, power), repeats = max(tries, key=lambda t: t[0][0]), tuned(queries(rows), REPEAT_GRID, False)
        for (value, parameters), tried in tries:
            print(f"# validation, new items: ours, values by the power {tried} of shares, {value:.4f} with {parameters}", flush=True)
        chosen = {"ours": [new, repeats],
                  "implicit": best(folds, IMPLICIT_GRID, peers.precision_implicit),
                  "Spark implicit": best(folds, SPARK_GRID, lambda **parameters: peers.precision_spark(folder=work, **parameters))}
        for name, configurations in chosen.items():
            for kind, (value, parameters) in zip(("new items", "repeats"), configurations):
                print(f"# validation, {kind}: {name} {value:.4f} with {parameters}", flush=True)

        # The five splits
        figures = {}
        for n, half in enumerate(halves):
            peers.quality_use(train=[(n, True)], test=[(n, False)])
            note = lambda name, pair: figures.setdefault(name, []).append(pair)
            note("EASE", peers.precision_ease(regularization=500))
            note("popularity", peers.precision_popularity())
            note("own history", peers.precision_own())
            note("implicit, its defaults", peers.precision_implicit())
            note("ours, defaults", evaluated(rows(half), rows("NOT " + half), {}))
            for kind in (0, 1):
                for name, measure in (("implicit", peers.precision_implicit), ("Spark implicit", lambda **more: peers.precision_spark(folder=work, **more))):
                    same = kind == 1 and chosen[name][0][1] == chosen[name][1][1]
                    note((name, kind), figures[name, 0][-1] if same else measure(**chosen[name][kind][1]))
                note(("ours", kind), evaluated((rows if kind else shares(power))(half), rows("NOT " + half), chosen["ours"][kind][1]))
                if kind == 0:
                    note("lists", [listed(rows(half), rows("NOT " + half), True)])
                if n == 0:
                    for side in ("user", "item"):
                        export("bench", side, work / side)
                    again = peers.precision_factors(users_path=work / "user", items_path=work / "item", rank=chosen["ours"][kind][1]["rank"])
                    assert max(abs(a - b) for a, b in zip(again, figures["ours", kind][0])) < 5e-4, f"evaluate() says {figures['ours', kind][0]}, NumPy {again}"
        mean = lambda name, kind: statistics.mean(pair[kind] for pair in figures[(name, kind) if (name, kind) in figures else name])
        for kind, what in enumerate(("new items", "with repeats, factors alone")):
            mine = mean("ours", kind)
            over = lambda name: report("quality", f"{what}: ours / {name}", "precision@5", mine, mean(name, kind), "",
                                                  [a[kind] / b[kind] for a, b in zip(figures["ours", kind], figures[(name, kind) if (name, kind) in figures else name])])
            over("EASE")
            for name in ("implicit", "Spark implicit"):
                over(name)
            if kind == 0:
                others = max(mean(name, 0) for name in ("implicit", "Spark implicit", "implicit, its defaults"))
                report("quality", f"{what}: ours / best of implicit and Spark + 0.005", "precision@5", mine, others + 0.005)
                print(f"# new items: {mine - others:+.4f} to the best of implicit and Spark; target +0.0050", flush=True)
            else:
                report("quality", f"{what}: ours / 0.58", "precision@5", mine, 0.58)
            for name in ("implicit, its defaults", "popularity", "own history", "ours, defaults"):
                over(name)

        report("quality", "with exclude_seen: ours / EASE", "precision@5", mean("lists", 0), mean("EASE", 0), "",
               [a[0] / b[0] for a, b in zip(figures["lists"], figures["EASE"])])

        # What users bring from Spark
        part = [(0, True), (6, True)]
        theirs, quantities = [], lambda *conditions: rows(*conditions).replace("product", "product, quantity", 1)
        for test in (part, [(0, True), (6, False)]):
            peers.quality_use(train=part, test=test)
            theirs.append(peers.precision_spark(folder=work, **SPARK_USERS)[1])
        mine = []
        for settings in (dict(implicit=False, rank=10, iterations=10, regularization=0.1), chosen["ours"][1][1]):
            query = quantities if "implicit" in settings else rows
            mine.append([evaluated(query(halves[0], flags[6]), rows(halves[0], flag), settings)[1] for flag in (flags[6], "NOT " + flags[6])])
        for i, what in enumerate(("train", "validation")):
            report("quality", f"Spark users' explicit configuration, {what}: ours / Spark", "precision@5", mine[0][i], theirs[i])
            report("quality", f"the one chosen for repeats, {what}: ours / Spark's explicit", "precision@5", mine[1][i], theirs[i])
