"""Jobs of docker/spark/train.py one after the other.  Writes into JOBS_FOLDER
  shop.csv, numbers.csv   user, rank, item, score: the lists that Spark makes of the models it has trained
  told                    lines "name: what the job says that fails"
"""
import contextlib
import csv
import io
import os
from pathlib import Path

from pyspark.sql import SparkSession

import train

folder = Path(os.environ["JOBS_FOLDER"])
spark = SparkSession.builder.appName("jobs").getOrCreate()
spark.sparkContext.setLogLevel("OFF")
QUERY = "SELECT customer, item, amount, at FROM events"


def job(model, ratings, *more):
    return train.attempt(spark, train.arguments(["--model", model, "--ratings", ratings, "--rank", "8", "--iterations", "3", "--blocks", "2", *more]))


def write_lists(model, trained):
    made, numbers = trained
    users, items = ({row.number: row.id for row in number.collect()} if number else None for number in numbers)
    with open(folder / f"{model}.csv", "w", newline="") as out:
        csv.writer(out).writerows((users[row.user] if users else row.user, rank, items[item] if items else item, repr(score))
                                  for row in made.recommendForAllUsers(10).collect() for rank, (item, score) in enumerate(row.recommendations, 1))


def database():
    return train.Database(spark).connection()


told = open(folder / "told", "w")


def fails(name, *arguments, **environment):
    before = dict(os.environ)
    os.environ.update(environment)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert job(*arguments) is None, name
    os.environ.clear()
    os.environ.update(before)
    told.write(f"{name}: {said.getvalue().strip()}\n")


write_lists("shop", job("shop", QUERY, "--split-by", "item", "--connections", "2"))

# Rows that come when the reading has begun
parts = train.Ratings.parts


def late(*arguments):
    with database() as connection:
        connection.run("INSERT INTO numbers SELECT 999, n, 1 FROM generate_series(1, 100) n")
    return parts(*arguments)


train.Ratings.parts = late
write_lists("numbers", job("numbers", "numbers", "--explicit", "--connections", "3", "--checkpoints", (folder / "checkpoints").as_uri()))
train.Ratings.parts = parts
job("shop", QUERY, "--no-activate", "--tables", "factors")

with database() as connection:
    connection.run("CREATE TABLE pets_users (id bigint PRIMARY KEY, name text)")
    train.may(connection, train.arguments(["--model", "shop", "--ratings", QUERY, "--tables", "factors"]))
fails("kept", "shop", QUERY, "--tables", "pets")
fails("password", "shop", QUERY, PGPASSWORD="guess")
fails("table", "shop", "nowhere")
fails("null", "shop", "VALUES (42, 1, NULL::real), (42, 2, 1)")
fails("nobody", "shop", "SELECT * FROM (VALUES (NULL::bigint, 'a'), (1, 'b')) v")
fails("negative", "shop", "SELECT 1, 2, -2")
fails("nan", "shop", "SELECT 1, 2, 'NaN'::float8", "--explicit")
fails("none", "shop", "SELECT 1, 2 WHERE false")
fails("float", "shop", "SELECT 1.5::float8 AS c, 2")
fails("split", "shop", QUERY, "--split-by", "when")
fails("socket", "shop", QUERY, PGHOST="/tmp")
fails("rights", "shop", "SELECT 1, 2", PGUSER="guest")
fails("extension", "shop", "SELECT 1, 2", PGDATABASE="postgres")
fails("seen", "shop", QUERY, "--seen", "nowhere")
with database() as connection:
    connection.row("SELECT pg_advisory_lock(hashtextextended('millrace spark shop', 0))::text")
    fails("busy", "shop", QUERY)
    connection.row("SELECT rows FROM millrace.fit_indexer('kinds', 'SELECT item FROM events')")
fails("kind", "kinds", QUERY)
told.close()
spark.stop()
