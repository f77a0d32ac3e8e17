"""Cases of clustering: k-means beside scikit-learn and Spark; what one row costs."""
import os, statistics, tarfile, time

from measure import ROOT, ROUNDS, Session, process_cpu, report, run, sql
from models import QUIET, Peers, Training, arguments, ratio

K = 20
SEEDS = range(1, 11)
COST = 72.5e6                  # what every seed shall reach
POINTS = 1000000, 32, 100      # rows, columns, clusters


class KmeansTraining(Training):
    function = "train_kmeans"


# Purchases before July 2011: price, quantity and weekday, as the pipeline of the recipe has them.
PIPELINE = """SELECT coalesce(unit_price, 0) AS unit_price, coalesce(quantity, 0) AS quantity,
    millrace.one_hot(millrace.index_of('weekday', to_char(invoice_date, 'FMDay')), millrace.index_size('weekday')) AS weekday
    FROM purchases WHERE invoice_date < '2011-07-01'"""
FEATURES = "SELECT unit_price, quantity, weekday FROM features"


def load_retail(peers, work):
    """Table purchases, all of Online Retail; table features, what the pipeline makes of it; the same in the peers."""
    if sql("SELECT to_regclass('purchases') IS NULL") == "t":
        with tarfile.open(ROOT / "tests/data/retail-by-day.tar.xz") as archive:
            archive.extractall(work)
        sql("""CREATE TABLE purchases (invoice_no text, stock_code text, description text, quantity int, invoice_date timestamp, unit_price float8,
            customer_id float8, country text)""")
        (work / "copy.sql").write_text("".join(f"\\copy purchases FROM '{f}' CSV HEADER\n" for f in sorted((work / "by-day").glob("*.csv"))))
        run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-f", str(work / "copy.sql"))
        sql(f"""{QUIET} SELECT millrace.fit_indexer('weekday', $$SELECT to_char(invoice_date, 'FMDay') FROM purchases WHERE invoice_date < '2011-07-01'$$);
            CREATE TABLE features AS {PIPELINE}""")
        sql("VACUUM ANALYZE purchases, features")
    if peers:
        columns = ", ".join(f"weekday[{i}]" for i in range(1, 6))
        run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-c", f"\\copy (SELECT unit_price, quantity, {columns} FROM features) TO '{work / 'points.csv'}' CSV")
        print("#", peers.points_load(path=work / "points.csv"), flush=True)


def trained(session, query, **settings):
    """Seconds and CPU seconds of the whole call, cost, iterations."""
    cpu, wall = process_cpu(session.pid), time.monotonic()
    session.run(f"SELECT millrace.train_kmeans('bench', $q${query}$q${arguments(settings)})")
    took = time.monotonic() - wall, process_cpu(session.pid) - cpu
    cost, iterations = session.run("SELECT metrics->>'cost', metrics->>'iterations' FROM millrace.models WHERE name = 'bench' AND active;"
                                   "SELECT millrace.prune('bench', 1) \\g /dev/null").split("|")
    return took, float(cost), int(iterations)


def compare_kmeans(peers, session, what, query, fastest):
    """Ours by query beside scikit-learn's fits of the same points; one start, and our defaults beside ten starts."""
    trained(session, query, k=K)
    for name, settings, n_init, rounds in (("one start", {"starts": 1}, 1, ROUNDS), ("defaults", {}, 10, 1)):
        times, mine, theirs = [], [], []
        for seed in [*SEEDS] * rounds:
            took, cost, _ = trained(session, query, k=K, seed=seed, **settings)
            peer = peers.sklearn_fit(data="retail", n_clusters=K, n_init=n_init, random_state=seed, **fastest)
            times.append((took, peer[:2]))
            mine.append(cost)
            theirs.append(peer[2])
        beside = "scikit-learn's ten starts" if n_init > 1 else "scikit-learn's"
        ratio("kmeans", f"{what}: {name} / {beside}", "s", times)
        report("kmeans", f"{what}: {name} / {beside}, mean", "cost", statistics.mean(mine), statistics.mean(theirs), "", [a / b for a, b in zip(mine, theirs)])
        if not settings:
            report("kmeans", f"{what}: defaults, worst of ten seeds / {COST / 1e6:g} M", "cost", max(mine), COST, "", [cost / COST for cost in mine])
    scan = f"SELECT count(q) FROM ({query}) AS q"
    ratio("kmeans", f"{what}: one start / SELECT count(q) FROM (query) AS q", "s", [(trained(session, query, k=K, starts=1)[0], session.timed(scan)) for _ in range(ROUNDS)])


def compare_silhouette(peers, work):
    """Of the model there is, on a twenty-fifth of the rows, as scikit-learn's is of all pairs."""
    sql("DROP TABLE IF EXISTS judged; CREATE TABLE judged AS SELECT * FROM features TABLESAMPLE bernoulli (4) REPEATABLE (1)")
    columns = ", ".join(f"weekday[{i}]" for i in range(1, 6))
    run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-c",
        f"\\copy (SELECT millrace.kmeans_assign('bench', ARRAY[unit_price, quantity] || weekday), unit_price, quantity, {columns} FROM judged) TO '{work / 'assigned.csv'}' CSV")
    report("kmeans", "silhouette: ours / scikit-learn's of the same assignment", "silhouette",
           float(sql("SELECT millrace.silhouette('bench', 'SELECT unit_price, quantity, weekday FROM judged')")), peers.silhouette(path=work / "assigned.csv"))


QUERIES = {"columns of a table": FEATURES, "pipeline in the query": PIPELINE}


def case_kmeans(work):
    """k-means of the 245,903 purchases of Online Retail before July 2011, k = 20: whole calls, from the table to the stored model, beside scikit-learn's fit on an array, both on all cores"""
    with Peers() as peers:
        load_retail(peers, work)
        ways = [{"algorithm": algorithm, "blas_threads": threads} for algorithm in ("lloyd", "elkan") for threads in {1, os.cpu_count()}]
        took = [[peers.sklearn_fit(data="retail", n_clusters=K, n_init=1, random_state=seed, **way)[0] for way in ways] for seed in [1, *SEEDS]][1:]
        fastest = ways[min(range(len(ways)), key=lambda i: sum(row[i] for row in took))]
        print(f"# scikit-learn's fastest way: {fastest}", flush=True)
        session = Session()
        for what, query in QUERIES.items():
            compare_kmeans(peers, session, what, query, fastest)
        trained(session, FEATURES, k=K)
        session.close()
        compare_silhouette(peers, work)


def case_kmeans_million(work):
    """One iteration on 1 M x 32 float8, k = 100, tolerance 0: ours from millrace.trainings, scikit-learn's as (22 iterations - 2) / 20; memory"""
    work.chmod(0o755)
    n, d, k = POINTS
    with Peers() as peers:
        print("#", peers.draw_points(folder=work, n=n, d=d, k=k), flush=True)
        for name in ("blobs", "uniform"):
            sql(f"BEGIN; CREATE TABLE {name} (x float8[]); COPY {name} FROM '{work / name}' (FORMAT binary, FREEZE); COMMIT")
            (work / name).unlink()
        sql("CHECKPOINT")
        for name in ("blobs", "uniform"):
            algorithm = min(("lloyd", "elkan"), key=lambda algorithm: peers.sklearn_iteration(data=name, k=k, algorithm=algorithm)[0])
            ours, theirs, single = [], [], []
            for _ in range(ROUNDS):
                ours.append(KmeansTraining(f"SELECT x FROM {name}", k=k, max_iterations=20, starts=1))
                theirs.append(peers.sklearn_iteration(data=name, k=k, algorithm=algorithm))
                single.append(peers.sklearn_iteration(data=name, k=k, algorithm="lloyd", single=True))
            mean = [tuple(statistics.mean(column) for column in zip(*training.iterations)) for training in ours]
            ratio("kmeans_million", f"{name}: an iteration / scikit-learn's", "s, mean of an iteration", list(zip(mean, theirs)))
            ratio("kmeans_million", f"{name}: an iteration / scikit-learn's in float4", "s, mean of an iteration", list(zip(mean, single)))
            report("kmeans_million", f"{name}: peak memory / the data", "bytes", statistics.median(training.peak for training in ours), 8 * n * d, "",
                   [training.peak / (8 * n * d) for training in ours])
            scan = Session()
            ratio("kmeans_million", f"{name}: before the first iteration (reading, start) / SELECT count(x)", "s",
                  [(training.reading, scan.timed(f"SELECT count(x) FROM {name}")) for training in ours])
            scan.close()
            report("kmeans_million", f"{name}: whole call, 20 iterations", "s", statistics.median(training.seconds for training in ours), float("nan"))


def case_kmeans_spark(work):
    """The same purchases, k = 20, at most 20 iterations: the whole call, from the table to the stored model, with our defaults, beside Spark's fit alone of cached rows"""
    with Peers() as peers:
        load_retail(peers, work)
        session = Session()
        fit = lambda seed: peers.spark_kmeans(folder=work, data="retail", k=K, iterations=20, seed=seed)
        for seed in range(1, 4):
            fit(seed)
        for what, query in QUERIES.items():
            trained(session, query, k=K)
            pairs = [(trained(session, query, k=K, seed=seed), fit(seed)) for seed in range(1, ROUNDS + 1)]
            report("kmeans_spark", f"{what}: whole call / Spark's fit", "s", statistics.median(mine[0][0] for mine, _ in pairs), statistics.median(theirs[0] for _, theirs in pairs),
                   "", [mine[0][0] / theirs[0] for mine, theirs in pairs])
            report("kmeans_spark", f"{what}: cost / Spark's", "cost", statistics.mean(mine[1] for mine, _ in pairs), statistics.mean(theirs[1] for _, theirs in pairs), "",
                   [mine[1] / theirs[1] for mine, theirs in pairs])
        session.close()


def case_assign(work):
    """What a row costs more with a function than without it, one process: microseconds over those of the query without"""
    load_retail(None, work)
    session = Session()
    session.run("SET max_parallel_workers_per_gather = 0; SET jit = off")
    trained(session, FEATURES, k=K)
    session.run("""SELECT millrace.fit_scaler('scaled', 'SELECT unit_price, quantity FROM features');
        CREATE TEMP TABLE rows AS SELECT ARRAY[unit_price, quantity] || weekday AS x, ARRAY[unit_price, quantity] AS two, i::int AS i, l.value AS name
        FROM (SELECT *, row_number() OVER () % 6 AS i FROM features) AS f JOIN millrace.index_label AS l ON l.index = f.i AND l.model = 'weekday';
        VACUUM ANALYZE rows""")
    n = int(session.run("SELECT count(*) FROM rows"))
    for what, with_it, without in (("kmeans_assign, 7 columns, k = 20", "millrace.kmeans_assign('bench', x)", "x"),
                                   ("kmeans_distance, the same", "millrace.kmeans_distance('bench', x)", "x"),
                                   ("index_of, 6 labels", "millrace.index_of('weekday', name)", "name"),
                                   ("index_size", "millrace.index_size('weekday')", "1"),
                                   ("one_hot, 6", "millrace.one_hot(i, 6)", "i"),
                                   ("scale, 2 columns", "millrace.scale('scaled', two)", "two"),
                                   ("unscale, 2 columns", "millrace.unscale('scaled', two)", "two")):
        pairs = [tuple([figure / n * 1e6 for figure in session.timed(f"SELECT count({expression}) FROM rows")] for expression in (with_it, without)) for _ in range(ROUNDS + 1)][1:]
        ratio("assign", f"{what}: a row more", "us a row", [([a - b for a, b in zip(*pair)], pair[1]) for pair in pairs])
    session.close()
