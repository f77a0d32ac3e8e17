"""Growth curves of models: training against ratings, users, items and rank, serving against items, rank and clients, k-means."""
import os, statistics

from clustering import KmeansTraining
from load import memory_of
from measure import ROUNDS, given, point, report, seconds, sql
from models import QUIET, Peers, Training, gflops
from serving import Client, Round, load_factors, recommend, write_values

PAIRS = int(os.environ.get("PAIRS", "20000000"))  # rows of the table that all trainings read, or a part of it
USERS, ITEMS, RANK = 100000, 20000, 64


def load_pairs():
    """Table pairs, made up: u and i of 100,000 users and 20,000 items, the first items more often than the last; a and b, the same as parts of 2^31."""
    if sql("SELECT to_regclass('pairs') IS NULL") == "t":
        sql(f"""CREATE UNLOGGED TABLE pairs AS SELECT (a * {USERS} >> 31)::int AS u, ({ITEMS} * power(b / 2147483648.0::float8, 2))::int AS i, a::int AS a, b::int AS b
            FROM generate_series(1, {PAIRS}) AS n, LATERAL (SELECT hashint8extended(n, 1) & 2147483647 AS a, hashint8extended(n, 2) & 2147483647 AS b) AS h""")
        sql("VACUUM ANALYZE pairs")


def pairs_of(n, users=USERS, items=ITEMS):
    """A query of n ratings of so many users and items."""
    u = "u" if users == USERS else f"(a::bigint * {users} >> 31)::int"
    i = "i" if items == ITEMS else f"({items} * power(b / 2147483648.0::float8, 2))::int"
    return f"SELECT {u}, {i} FROM pairs LIMIT {n}"


def training(curve, series, x, x_unit, query, **settings):
    """Trains, and notes everything about it; the training, and how many pairs, users and items it had."""
    done = Training(query, **{"iterations": 4, **settings})
    for what, value, unit in (("an iteration", done.iteration[0], "s"), ("CPU of an iteration", done.iteration[1], "s"), ("storing", done.storing, "s"), ("peak memory", done.peak / 1e6, "MB")):
        point(curve, f"{series}{what}", x, x_unit, value, unit)
    done.pairs, done.users, done.items = map(int, sql("SELECT ratings, users, items FROM millrace.models WHERE name = 'bench' AND active").split("|"))
    return done


def linear(case, what, unit, figures, target):
    """figures: {x: value}.  What the last point takes for each of x, over what the first does."""
    (least, first), *_, (most, last) = figures.items()
    report(case, f"{what}, {most:,} / {least:,}, each", unit, last / most, first / least, target)


def case_grow_ratings(work):
    """Implicit ALS, rank 64, 100,000 users, 20,000 items, against ratings: an iteration, reading, storing, retrain, memory"""
    given.rounds = 1
    load_pairs()
    sizes = [PAIRS // 20, PAIRS // 10, PAIRS // 4, PAIRS // 2, PAIRS]
    reading, memory, iterations = {}, {}, {}
    for n in sizes:
        done = training("grow_ratings", "", n, "ratings", pairs_of(n), rank=RANK)
        reading[n], memory[n], iterations[n] = done.reading[1], done.peak, done.iteration[1]
        point("grow_ratings", "reading", n, "ratings", done.reading[0], "s")
        point("grow_ratings", "retrain", n, "ratings", seconds(lambda: sql(f"{QUIET} SELECT millrace.retrain('bench'); SELECT millrace.prune('bench', 1)")), "s")
    # Made-up ratings without tastes: after some iterations all columns of the factors but few have fallen to nothing.
    cpu = [step[1] for step in Training(pairs_of(sizes[0]), rank=RANK, iterations=16).iterations]
    report("grow_ratings", "CPU of iterations 13 to 16 / 2 to 5, factors that fall to nothing", "s", sum(cpu[-4:]), sum(cpu[:4]), "<= 1.1")
    linear("grow_ratings", "CPU of reading a row", "us", {n: value * 1e6 for n, value in reading.items()}, "<= 1.25")
    linear("grow_ratings", "CPU of an iteration for a rating", "us", {n: value * 1e6 for n, value in iterations.items()}, "<= 1.25")
    linear("grow_ratings", "peak memory for a rating", "bytes", memory, "<= 1")
    sql("SELECT millrace.drop_model('bench')")


def case_grow_users(work):
    """Implicit ALS, rank 64, 20,000 items, against users: with 20 ratings each (shorter than the rank: n equations), and with 128 (rank equations)"""
    given.rounds = 1
    load_pairs()
    for each, sizes in ((20, (10000, 30000, 100000, 300000, 1000000)), (128, (10000, 30000, 100000, 150000))):
        cpu, memory, storing = {}, {}, {}
        for users in sizes:
            done = training("grow_users", f"{each} ratings each: ", users, "users", pairs_of(users * each, users), rank=RANK, own_history=0)
            cpu[done.users], memory[done.users], storing[done.users] = done.iteration[1] * 1e6, done.peak, done.storing * 1e6
            if each == 20:
                values = write_values(work / "values", range(0, done.users, max(done.users // 1000, 1)))
                # Without the ratings' query, which would read all pairs for what the user has: they have no index, and nobody keeps it.
                sql(f"{QUIET} SELECT millrace.import_als('served', 'SELECT id::bigint, factor FROM millrace.user_factors(''bench'')', 'SELECT id::bigint, factor FROM millrace.item_factors(''bench'')')")
                client = Client(recommend("served"), values)
                Round(client, seconds=0.2)
                point("grow_users", "recommend_top_k, CPU of a call", users, "users", Round(client, seconds=0.5).median[1], "ms")
                client.close()
                sql("SELECT millrace.drop_model('served')")
        linear("grow_users", f"{each} ratings each: CPU of an iteration for a user", "us", cpu, "<= 1.25")
        linear("grow_users", f"{each} ratings each: peak memory for a user", "bytes", memory, "<= 1")
    sql("SELECT millrace.drop_model('bench')")


def case_grow_items(work):
    """Against items: an iteration of implicit ALS, rank 64, 10 M ratings of 100,000 users; recommend_top_k of normal factors and of such with log-normal norms, import, private memory"""
    given.rounds = 1
    load_pairs()
    work.chmod(0o755)
    cpu = {}
    for items in (1000, 10000, 100000, 1000000):
        done = training("grow_items", "", items, "items", pairs_of(PAIRS // 2, USERS, items), rank=RANK)
        cpu[items] = done.iteration[1]
    sql("SELECT millrace.drop_model('bench')")
    sizes, n_users = (1000, 10000, 30000, 100000, 300000, 1000000), 1000
    with Peers() as peers:
        peers.draw_factors(folder=work, users=n_users, items=sizes[-1], rank=RANK)
    load_factors(work / "users", "grown_users")
    values = write_values(work / "values", range(n_users))
    for side, what in (("items", "normal factors"), ("popular", "log-normal norms")):
        load_factors(work / side, "grown_items")
        calls = {}
        for items in sizes:
            took = seconds(lambda: sql(f"{QUIET} SELECT millrace.import_als('grown', 'grown_users', 'SELECT * FROM grown_items WHERE id < {items}'); SELECT millrace.prune('grown', 1)"))
            client = Client(recommend("grown"), values)
            Round(client, seconds=0.2)
            figures = Round(client, seconds=1)
            calls[items] = figures.median[1]
            point("grow_items", f"recommend_top_k, {what}: CPU of a call", items, "items", figures.median[1], "ms")
            point("grow_items", f"recommend_top_k, {what}: 99th percentile", items, "items", figures.p99, "ms")
            if side == "items":
                point("grow_items", "import_als", items, "items", took, "s")
                point("grow_items", "private memory of a session that recommends", items, "items", memory_of(client.pid)[0] / 1e6, "MB")
            client.close()
        linear("grow_items", f"CPU of recommend_top_k for an item, {what}", "ns", {n: calls[n] * 1e6 for n in sizes[3:]}, "<= 1.25")
    sql("SELECT millrace.drop_model('grown'); DROP TABLE grown_users, grown_items")


def case_grow_rank(work):
    """Against rank: an iteration of implicit ALS, 5 M ratings of 100,000 users and 20,000 items, its flops, memory; recommend_top_k of 100,000 items"""
    given.rounds = 1
    load_pairs()
    work.chmod(0o755)
    ranks, n_users, n_items = (8, 10, 16, 24, 32, 50, 64, 100, 128, 256), 1000, 100000
    cpu = {}
    for rank in ranks:
        done = training("grow_rank", "", rank, "rank", pairs_of(PAIRS // 4), rank=rank, iterations=3)
        cpu[rank] = done.iteration[1]
        point("grow_rank", "flops of the primal algorithm", rank, "rank", gflops(done.pairs, done.users, done.items, rank, cpu[rank]), "GFLOP/s of a core")
    sql("SELECT millrace.drop_model('bench')")
    for rank, next_one in ((10, 16), (24, 32), (50, 64)):
        report("grow_rank", f"CPU of an iteration, rank {rank} / {next_one}", "s", cpu[rank], cpu[next_one], "<= 1.25")
    with Peers() as peers:
        peers.draw_factors(folder=work, users=n_users, items=n_items, rank=ranks[-1])
    load_factors(work / "users", "grown_users")
    load_factors(work / "items", "grown_items")
    values = write_values(work / "values", range(n_users))
    calls = {}
    for rank in ranks:
        sql(f"{QUIET} SELECT millrace.import_als('grown', 'SELECT id, factor[:{rank}] FROM grown_users', 'SELECT id, factor[:{rank}] FROM grown_items'); SELECT millrace.prune('grown', 1)")
        client = Client(recommend("grown"), values)
        Round(client, seconds=0.2)
        figures = Round(client, seconds=1)
        calls[rank] = figures.median[1]
        point("grow_rank", "recommend_top_k, 100,000 items: CPU of a call", rank, "rank", figures.median[1], "ms")
        client.close()
    linear("grow_rank", "CPU of recommend_top_k for a rank", "us", {rank: calls[rank] * 1e3 for rank in ranks if rank >= 32}, "<= 1.25")
    sql("SELECT millrace.drop_model('grown'); DROP TABLE grown_users, grown_items")


def case_grow_clients(work):
    """recommend_top_k, 20,000 items, rank 64, without the about 150 that a user has, against clients: calls a second, latency, CPU, memory of a connection; beside it a call that counts to 4,000"""
    load_pairs()
    work.chmod(0o755)
    n_users = 20000
    with Peers() as peers:
        peers.draw_factors(folder=work, users=n_users, items=ITEMS, rank=RANK)
    load_factors(work / "users", "grown_users")
    load_factors(work / "items", "grown_items")
    sql(f"CREATE TABLE has AS SELECT u % {n_users} AS u, i FROM pairs LIMIT {150 * n_users}; CREATE INDEX ON has (u); ANALYZE has")
    sql(f"{QUIET} SELECT millrace.import_als('served', 'grown_users', 'grown_items', 'SELECT u, i FROM has'); SELECT millrace.track_history('served')")
    values = write_values(work / "values", range(0, n_users, 5))
    counts = (1, 2, 4, 8, 16)
    statements = {"recommend_top_k": recommend("served"), "a call that counts to 4,000": "SELECT count(*) FROM generate_series(1, 4000 + $1::int % 10)"}
    clients = {name: [Client(statement, values, 97 * first) for first in range(counts[-1])] for name, statement in statements.items()}
    figures = {}
    for turn in range(ROUNDS + 1):
        for name in statements:
            for n in counts:
                figures.setdefault((name, n), []).append(Round(*clients[name][:n], seconds=0.5))
    median = lambda name, n, of: statistics.median(of(figure) for figure in figures[name, n][1:])
    for name in statements:
        for n in counts:
            for what, of, unit in (("calls", lambda f: f.rate, "calls per s"), ("median", lambda f: f.median[0], "ms"), ("99th percentile", lambda f: f.p99, "ms"), ("CPU of a call", lambda f: f.median[1], "ms")):
                point("grow_clients", f"{name}: {what}", n, "clients", median(name, n, of), unit)
        for n in (2, 16):
            report("grow_clients", f"{name}: {n} clients / 1", "calls per s", median(name, n, lambda f: f.rate), median(name, 1, lambda f: f.rate), "",
                   [b.rate / a.rate for a, b in zip(figures[name, 1][1:], figures[name, n][1:])])
        report("grow_clients", f"{name}: CPU of a call, 16 clients / 2", "ms", median(name, 16, lambda f: f.median[1]), median(name, 2, lambda f: f.median[1]), "<= 1.25" if name == "recommend_top_k" else "")
    used = [memory_of(client.pid) for client in clients["recommend_top_k"]]
    report("grow_clients", "private memory of a connection that recommends, mean of 16; its Pss", "MB", statistics.mean(m[0] for m in used) / 1e6, statistics.mean(m[1] for m in used) / 1e6)
    for client in sum(clients.values(), []):
        client.close()
    sql("SELECT millrace.drop_model('served'); DROP TABLE has, grown_users, grown_items")


def case_grow_k(work):
    """k-means against k (200,000 x 32), rows (x 32, k = 20) and dimensions (50,000 rows without clusters, k = 20); the others clouds that overlap: an iteration, the rest of the call, memory"""
    given.rounds = 1
    work.chmod(0o755)
    figures = {"k": {}, "rows": {}, "dimensions": {}}
    memory = {}

    def one(by, x, query, k):
        done = KmeansTraining(query, k=k, max_iterations=12, starts=1)
        mean = [statistics.mean(column) for column in zip(*done.iterations)]
        figures[by][x] = mean[1]
        memory[by, x] = done.peak
        for what, value, unit in (("an iteration", mean[0], "s"), ("CPU of an iteration", mean[1], "s"), ("the whole call, 12 iterations", done.seconds, "s"), ("peak memory", done.peak / 1e6, "MB")):
            point(f"grow_k: {by}", what, x, by, value, unit)

    with Peers() as peers:
        for name, kind, n, d, k in (("long", "blobs", 1000000, 32, 100), ("wide", "uniform", 50000, 512, 20)):
            peers.draw_points(folder=work, n=n, d=d, k=k)
            sql(f"BEGIN; CREATE TABLE {name} (x float8[]); COPY {name} FROM '{work / kind}' (FORMAT binary, FREEZE); COMMIT")
            for made in ("blobs", "uniform"):
                (work / made).unlink()
    for k in (2, 5, 10, 20, 50, 100, 200, 500, 1000):
        one("k", k, "SELECT x FROM long LIMIT 200000", k)
    for n in (10000, 30000, 100000, 300000, 1000000):
        one("rows", n, f"SELECT x FROM long LIMIT {n}", 20)
    for d in (2, 4, 8, 16, 32, 64, 128, 256, 512):
        one("dimensions", d, f"SELECT x[:{d}] FROM wide", 20)
    us = lambda by, *keep: {x: figures[by][x] * 1e6 for x in keep}
    linear("grow_k", "CPU of an iteration for a cluster", "us", us("k", 100, 1000), "<= 1.25")
    linear("grow_k", "CPU of an iteration for a row", "us", us("rows", 100000, 1000000), "<= 1.25")
    linear("grow_k", "CPU of an iteration for a dimension", "us", us("dimensions", 32, 512), "<= 1.25")
    report("grow_k", "peak memory, 1,000,000 x 32 / the data", "MB", memory["rows", 1000000] / 1e6, 1000000 * 32 * 8 / 1e6, "<= 1.5")
    sql("SELECT millrace.drop_model('bench'); DROP TABLE long, wide")
