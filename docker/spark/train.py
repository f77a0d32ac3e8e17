"""Trains a model on a Spark cluster, for PostgreSQL to serve: reads ratings from there, fits MLlib's ALS, writes the factors back
and makes them a version of the model.

  spark-submit --packages org.postgresql:postgresql:42.7.8 train.py --model shop --ratings 'SELECT user_id, product_id FROM purchases'

The connection is libpq's environment: PGHOST, PGPORT, PGDATABASE, PGUSER, PGSSLMODE, PGSSLROOTCERT, and PGPASSWORD or PGPASSFILE for
the password, which therefore is on no command line and in no log.  README.md has the rest.
"""
import argparse
import hashlib
import os
import re
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession, functions as F

DRIVER = "org.postgresql.Driver"
ROWS = 10000  # of a fetch, of a batch of inserts
INTEGERS, TEXTS = ("int2", "int4", "int8"), ("text", "varchar")
ORDERED = (*INTEGERS, "date", "timestamp", "timestamptz", "numeric", "float4", "float8")


class Wrong(Exception):
    """What the user can do something about."""


def arguments(argv):
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, help="name of the model; each run makes a new version of it")
    add("--ratings", required=True, metavar="QUERY", help="table, view or query: user, item (integers or texts) and, if there is a third column, value; "
        "values of the same pair are summed, as in millrace.train_als")
    add("--seen", metavar="QUERY", help="what users have, for millrace to leave out of lists, instead of --ratings; 'none': nothing")
    add("--explicit", action="store_true", help="the value is a rating to be predicted, not how often or how much")
    add("--rank", type=int, default=64)
    add("--iterations", type=int, default=15)
    add("--regularization", type=float, default=0.1)
    add("--alpha", type=float, default=40.0, help="of implicit feedback: how much more a value of one weighs than none")
    add("--nonnegative", action="store_true")
    add("--seed", type=int, default=42)
    add("--blocks", type=int, help="of users and of items; twice the cores of the cluster unless given")
    add("--connections", type=int, help="to PostgreSQL, to read and to write; the cores of the cluster, at most 16, unless given")
    add("--split-by", metavar="COLUMN", help="column of --ratings by whose ranges the connections share the rows; the user unless given")
    add("--tables", metavar="PREFIX", help="keep the factors in tables PREFIX_users and PREFIX_items, too, which change with the version")
    add("--no-activate", action="store_true", help="make the version, but do not serve it yet")
    add("--checkpoints", metavar="FOLDER", help="on storage that all executors share: what has been read survives the loss of one")
    return parser.parse_args(argv)


# ---- PostgreSQL ----

def password_of(host, port, database, user):
    """PGPASSWORD, or what the password file has, as libpq finds it."""
    if "PGPASSWORD" in os.environ:
        return os.environ["PGPASSWORD"]
    path = Path(os.environ.get("PGPASSFILE") or Path.home() / ".pgpass")
    with suppress(OSError):
        for line in path.read_text().splitlines():
            fields = [re.sub(r"\\(.)", r"\1", field) for field in re.findall(r"((?:\\.|[^:\\])*)(?::|$)", line)[:5]]
            if len(fields) == 5 and not line.startswith("#") and all(have in ("*", want) for have, want in zip(fields, (host, port, database, user))):
                return fields[4]
    return None


class Database:
    """Where to connect, for this process and for the executors."""

    def __init__(self, spark):
        self.jvm = spark._jvm
        hosts = os.environ.get("PGHOST", "localhost").split(",")
        ports = os.environ.get("PGPORT", "5432").split(",")
        user = os.environ.get("PGUSER") or os.environ.get("USER") or "postgres"
        name = os.environ.get("PGDATABASE", user)
        if any(host.startswith("/") for host in hosts):
            raise Wrong("PGHOST is a socket's folder: executors connect by TCP, so name a host")
        ports = ports * len(hosts) if len(ports) == 1 else ports
        # The name is in the URL as it is in a page's address.
        self.url = "jdbc:postgresql://" + ",".join(f"{host}:{port}" for host, port in zip(hosts, ports)) + "/" + self.jvm.java.net.URLEncoder.encode(name, "UTF-8")
        self.options = {"driver": DRIVER, "user": user, "reWriteBatchedInserts": "true", "tcpKeepAlive": "true", "ApplicationName": "millrace on Spark"}
        password = password_of(hosts[0], ports[0], name, user)
        self.options.update({key: value for key, value in {
            "password": password, "sslmode": os.environ.get("PGSSLMODE"), "sslrootcert": os.environ.get("PGSSLROOTCERT"),
            "targetServerType": "primary" if len(hosts) > 1 else None}.items() if value is not None})
        try:
            self.jvm.org.apache.spark.sql.execution.datasources.jdbc.DriverRegistry.register(DRIVER)
        except Py4JJavaError as error:
            raise Wrong("there is no JDBC driver of PostgreSQL: spark-submit --packages org.postgresql:postgresql:42.7.8, or --jars") from error

    @contextmanager
    def connection(self):
        properties = self.jvm.java.util.Properties()
        for key, value in self.options.items():
            if key != "driver":
                properties.setProperty(key, value)
        connection = self.jvm.java.sql.DriverManager.getConnection(self.url, properties)
        try:
            yield Connection(connection)
        finally:
            with suppress(Py4JError):
                connection.close()


class Connection:
    """A session of this process."""

    def __init__(self, jdbc):
        self.jdbc = jdbc

    def run(self, text):
        statement = self.jdbc.createStatement()
        statement.execute(text)
        statement.close()

    def rows(self, text, *parameters):
        """Rows as lists of texts."""
        statement = self.jdbc.prepareStatement(text)
        for i, value in enumerate(parameters, 1):
            if value is None:
                statement.setNull(i, 12)
            else:
                statement.setString(i, value)
        found, rows = statement.executeQuery(), []
        n = found.getMetaData().getColumnCount()
        while found.next():
            rows.append([found.getString(i) for i in range(1, n + 1)])
        statement.close()
        return rows

    def row(self, text, *parameters):
        return self.rows(text, *parameters)[0]

    def columns(self, query):
        """(name, type) of each."""
        statement = self.jdbc.prepareStatement(f"SELECT * FROM ({query}\n) AS q LIMIT 0")
        found = statement.executeQuery().getMetaData()
        columns = [(found.getColumnName(i), found.getColumnTypeName(i)) for i in range(1, found.getColumnCount() + 1)]
        statement.close()
        return columns

    @contextmanager
    def transaction(self):
        self.jdbc.setAutoCommit(False)
        yield
        self.jdbc.commit()
        self.jdbc.setAutoCommit(True)


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def literal(text):
    return "'" + text.replace("'", "''") + "'"


def query_of(given):
    return given if re.match(r"\s*(\(|(select|with|table|values)\b)", given, re.IGNORECASE) else f"SELECT * FROM {given}"


# ---- ratings ----

class Ratings:
    """The query of the ratings as the executors ask it: columns user, item, value and split."""

    def __init__(self, connection, given, split_by):
        query = query_of(given)
        columns = connection.columns(query)
        if len(columns) < 2:
            raise Wrong(f"--ratings: expected user, item and perhaps value, found {len(columns)} column")
        self.text = []
        for (name, kind), what in zip(columns, ("user", "item")):
            if kind not in INTEGERS + TEXTS:
                raise Wrong(f'--ratings: column "{name}", the {what}, is neither an integer nor text but {kind}; cast it')
            self.text.append(kind in TEXTS)
        names = [name for name, _ in columns]
        if split_by and names.count(split_by) != 1:
            raise Wrong(f'--split-by: the ratings have no column "{split_by}" but ' + ", ".join(f'"{name}"' for name in names))
        at = names.index(split_by) if split_by else 0
        self.ordered = columns[at][1] in ORDERED
        kinds = ["text" if text else "int8" for text in self.text]
        aliases = ", ".join(f"c{i + 1}" for i in range(len(columns)))
        value = "c3::float8" if len(columns) > 2 else "1::float8"
        self.query = (f'SELECT c1::{kinds[0]} AS "user", c2::{kinds[1]} AS item, {value} AS value, c{at + 1} AS split'
                      f" FROM ({query}\n) AS q({aliases})")

    def parts(self, connection, n):
        """Conditions that share the rows out: ranges of a column that has an order and distances, hashes of any other."""
        if n == 1:
            return ["true"]
        if not self.ordered:
            return [f"coalesce(abs(hashtext(split::text) % {n}), 0) = {i}" for i in range(n)]
        bounds = connection.row(f"SELECT {', '.join(f'lo + (hi - lo) / {n} * {i}' for i in range(1, n))} FROM (SELECT min(split) AS lo, max(split) AS hi FROM ({self.query}) AS r) AS b")
        if bounds[0] is None:
            return ["true"]
        bounds = [literal(bound) for bound in bounds]
        return [f"split < {bounds[0]} OR split IS NULL", *(f"split >= {a} AND split < {b}" for a, b in zip(bounds, bounds[1:])), f"split >= {bounds[-1]}"]


def read(spark, database, connection, settings):
    """All ratings, as one moment has them, kept by the executors: the transaction that shows that moment is over then, since windows cannot close beside it."""
    ratings = Ratings(connection, settings.ratings, settings.split_by)
    with database.connection() as moment:
        moment.jdbc.setAutoCommit(False)
        moment.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        snapshot, = moment.row("SELECT pg_export_snapshot()")
        # Executors begin a transaction for their query, whose rows they fetch so many at a time.
        rows = kept(spark, settings, spark.read.jdbc(
            database.url, f"({ratings.query}) AS r", predicates=ratings.parts(moment, settings.connections),
            properties={**database.options, "fetchsize": str(ROWS), "sessionInitStatement":
                        f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT '{snapshot}'"}).drop("split"))
        moment.jdbc.rollback()
    return ratings, rows


def kept(spark, settings, frame):
    """Computed now and never again: from here on nothing depends on where it came from."""
    return frame.checkpoint() if settings.checkpoints else frame.localCheckpoint()


def check(rows, explicit):
    """What train_als refuses is refused here."""
    for column in ("user", "item", "value"):
        bad = rows.where(F.col(column).isNull()).first()
        if bad:
            others = " and ".join(f'{name} "{bad[name]}"' for name in ("user", "item", "value") if name != column)
            raise Wrong(f"--ratings: the {column} is NULL (of {others}); leave such rows out with WHERE … IS NOT NULL")
    value = F.col("value")
    bad = rows.where(F.isnan(value) | (F.abs(value) > 3.4028234663852886e38) | (F.lit(not explicit) & (value < 0))).first()
    if bad:
        why = "is negative, which implicit feedback cannot have: leave such rows out, or say --explicit" if bad.value < 0 and bad.value > -3.5e38 else "is no finite number in single precision"
        raise Wrong(f'--ratings: the value {bad.value:g} of user "{bad.user}" and item "{bad.item}" {why}')


def numbered(spark, settings, rows, side, text):
    """MLlib wants 32-bit integers.  Ids that are such numbers stand for themselves (None is returned); the others get dense numbers, by a frame id, number.
    Every executor numbers its own ids, in their order, so that ids lost with an executor and read again get the same numbers."""
    if not text:
        least, most = rows.agg(F.min(side), F.max(side)).first()
        if least >= 0 and most < 2**31:
            return None
    ids = rows.select(F.col(side).alias("id")).distinct().sortWithinPartitions("id")
    ids = kept(spark, settings, ids.select("id", F.spark_partition_id().alias("part"), F.monotonically_increasing_id().bitwiseAND((1 << 33) - 1).alias("at")))
    first, total = {}, 0
    for part, n in sorted(map(tuple, ids.groupBy("part").count().collect())):
        first[part] = total
        total += n
    if total >= 2**31:
        raise Wrong(f"--ratings: MLlib numbers at most {2**31 - 1:,} {side}s, there are {total:,}")
    offsets = F.create_map(*(F.lit(x).cast("long") for pair in first.items() for x in pair))
    return ids.select("id", (F.col("at") + offsets[F.col("part").cast("long")]).cast("int").alias("number"))


# ---- factors ----

def store(connection, database, settings, model, numbers, text):
    """Writes the factors of both sides, then makes the version: whoever asks is served the old one until that commits."""
    tables = {}
    for side, factors, number, is_text in zip(("users", "items"), (model.userFactors, model.itemFactors), numbers, text):
        table = tables[side] = staging(settings.model, side)
        connection.run(f"DROP TABLE IF EXISTS {table}; CREATE {'' if settings.tables else 'UNLOGGED '}TABLE {table} (id {'text' if is_text else 'bigint'} NOT NULL, factor real[] NOT NULL)")
        frame = factors.withColumnRenamed("id", "number")
        frame = frame.withColumn("id", F.col("number").cast("long")) if number is None else frame.join(number, "number")
        frame.select("id", F.col("features").alias("factor")).coalesce(settings.connections).write.jdbc(
            database.url, table, mode="append", properties={**database.options, "batchsize": str(ROWS)})
    with connection.transaction():
        seen = settings.seen or settings.ratings
        made = connection.row("SELECT version, users, items, active FROM millrace.import_als(?, ?, ?, ?::text, ?::bool, ?::bool)", settings.model,
                              *(f"SELECT id, factor FROM {table}" for table in tables.values()), None if seen == "none" else seen,
                              str(not settings.explicit), str(not settings.no_activate))
        for side, table in tables.items():
            if settings.tables:
                kept_table = quoted(f"{settings.tables}_{side}")
                connection.run(f"DROP TABLE IF EXISTS {kept_table}; ALTER TABLE {table} RENAME TO {kept_table}; ALTER TABLE {kept_table} ADD PRIMARY KEY (id)")
            else:
                connection.run(f"DROP TABLE {table}")
    return made


def staging(model, side):
    return quoted(f"millrace spark {hashlib.md5(model.encode()).hexdigest()} {side}")


def may(connection, settings):
    """What would fail in the end fails in the beginning."""
    if connection.row("SELECT count(*) FROM pg_extension WHERE extname = 'millrace'") == ["0"]:
        raise Wrong("this database has no Millrace: CREATE EXTENSION millrace")
    denied, = connection.row("""SELECT concat_ws(' and ', CASE WHEN NOT has_schema_privilege('millrace', 'USAGE') THEN 'USAGE on schema millrace'
        WHEN NOT has_function_privilege('millrace.import_als(text, text, text, text, bool, bool)', 'EXECUTE') THEN 'EXECUTE on millrace.import_als' END,
        CASE WHEN current_schema() IS NULL OR NOT has_schema_privilege(current_schema(), 'CREATE') THEN 'CREATE on schema ' || coalesce(current_schema(), 'public') END)""")
    if denied:
        raise Wrong(f'role "{database_user(connection)}" needs {denied}')
    if connection.row("SELECT pg_try_advisory_lock(hashtextextended('millrace spark ' || ?, 0))", settings.model) == ["f"]:
        raise Wrong(f'another job is training model "{settings.model}"')
    for side in ("users", "items") if settings.tables else ():
        name = f"{settings.tables}_{side}"
        columns, = connection.row("""SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute
            WHERE attrelid = to_regclass(?) AND attnum > 0 AND NOT attisdropped""", quoted(name))
        if columns not in (None, "id bigint, factor real[]", "id text, factor real[]"):
            raise Wrong(f'--tables: "{name}" is no table of factors, but has {columns}; it would be replaced')
    if settings.seen and settings.seen != "none":
        connection.columns(query_of(settings.seen))
    kind = connection.rows("SELECT kind FROM millrace.models WHERE name = ? AND kind <> 'als' LIMIT 1", settings.model)
    if kind:
        raise Wrong(f'model "{settings.model}" is of kind {kind[0][0]}')


def database_user(connection):
    return connection.row("SELECT current_user")[0]


# ---- the job ----

def train(spark, settings):
    """Returns MLlib's model and the numbers of users' and items' ids, or None for those that are numbers themselves."""
    if settings.checkpoints:
        spark.sparkContext.setCheckpointDir(settings.checkpoints)
    cores = spark.sparkContext.defaultParallelism
    settings.connections = settings.connections or min(cores, 16)
    settings.blocks = settings.blocks or 2 * cores
    database = Database(spark)
    with database.connection() as connection:
        may(connection, settings)
        with told() as say:
            ratings, rows = read(spark, database, connection, settings)
            n = rows.count()
            if n == 0:
                raise Wrong("--ratings: there are no rows")
            check(rows, settings.explicit)
            numbers = [numbered(spark, settings, rows, side, text) for side, text in zip(("user", "item"), ratings.text)]
            pairs = rows.groupBy("user", "item").agg(F.sum("value").cast("float").alias("value"))
            for side, number in zip(("user", "item"), numbers):
                pairs = pairs.withColumn(side, F.col(side).cast("int")) if number is None else \
                    pairs.withColumnRenamed(side, "id").join(number, "id").drop("id").withColumnRenamed("number", side)
            say(f"{n:,} ratings read by {settings.connections} connections")
        with told() as say:
            model = ALS(userCol="user", itemCol="item", ratingCol="value", rank=settings.rank, maxIter=settings.iterations, regParam=settings.regularization,
                        alpha=settings.alpha, implicitPrefs=not settings.explicit, nonnegative=settings.nonnegative, seed=settings.seed,
                        numUserBlocks=settings.blocks, numItemBlocks=settings.blocks).fit(pairs)
            say(f"rank {settings.rank}, {settings.iterations} iterations trained on {cores} cores")
        with told() as say:
            version, users, items, active = store(connection, database, settings, model, numbers, ratings.text)
            say(f'model "{settings.model}" has version {version}, {int(users):,} users and {int(items):,} items' + (", served from now on" if active == "t" else ", not active"))
    return model, numbers


@contextmanager
def told():
    start = time.monotonic()
    yield lambda text: print(f"{text}: {time.monotonic() - start:.1f} s", flush=True)


def reason(error):
    """What PostgreSQL said, if it was PostgreSQL; what Spark says otherwise."""
    text = str(getattr(error, "java_exception", None) or error)
    if isinstance(error, Py4JJavaError):
        cause = error.java_exception
        while cause is not None:
            text = cause.toString()
            cause = cause.getCause()
    found = re.search(r"PSQLException: (.*?)(?:\n\s*at |\n\nDriver stacktrace|\Z)", text, re.DOTALL)
    return (found.group(1) if found else text.split("\n\tat ")[0].split("\n\nDriver stacktrace")[0]).strip()


def attempt(spark, settings):
    """What train returns; None after an error, which is told."""
    try:
        return train(spark, settings)
    except Wrong as error:
        print(f"train.py: {error}", file=sys.stderr)
    except (Py4JError, PySparkException) as error:
        print(f"train.py: {reason(error)}", file=sys.stderr)
    return None


def main():
    settings = arguments(sys.argv[1:])
    spark = SparkSession.builder.appName(f"millrace {settings.model}").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    trained = attempt(spark, settings)
    spark.stop()
    return 0 if trained else 1


if __name__ == "__main__":
    sys.exit(main())
