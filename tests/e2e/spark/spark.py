"""What Spark MLlib makes of the ratings in a folder: spark.py FOLDER

Reads train.csv and test.csv (user, item, value; no heading).  Writes, for tables of PostgreSQL:
  users.csv, items.csv   id, factors of the implicit model
  lists.csv              user, rank, item, score: its recommendForAllUsers
  rmse                   one line a model, "name value": RMSE on the test pairs whose user and item are in train.csv
"""
import csv
import sys
from pathlib import Path

from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession

K = 10
folder = Path(sys.argv[1])
spark = (SparkSession.builder.master("local[2]").appName("millrace")
         .config("spark.ui.enabled", "false").config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
         .config("spark.driver.memory", "1g").config("spark.sql.shuffle.partitions", "4").config("spark.local.dir", str(folder))
         .config("spark.sql.warehouse.dir", str(folder / "warehouse")).getOrCreate())
spark.sparkContext.setLogLevel("ERROR")
train, test = (spark.read.csv(str(folder / name), schema="user int, item int, value float").coalesce(4).cache() for name in ("train.csv", "test.csv"))


def als(**more):
    return ALS(userCol="user", itemCol="item", ratingCol="value", seed=1, numUserBlocks=2, numItemBlocks=2, coldStartStrategy="drop", **more).fit(train)


def write(name, rows):
    with open(folder / name, "w", newline="") as out:
        csv.writer(out).writerows(rows)


implicit = als(rank=16, maxIter=10, regParam=0.1, alpha=1.0, implicitPrefs=True)
for name, factors in (("users.csv", implicit.userFactors), ("items.csv", implicit.itemFactors)):
    write(name, ((row.id, "{" + ",".join(map(repr, row.features)) + "}") for row in factors.collect()))
write("lists.csv", ((row.user, rank, item, repr(score)) for row in implicit.recommendForAllUsers(K).collect()
                    for rank, (item, score) in enumerate(row.recommendations, 1)))

rmse = RegressionEvaluator(metricName="rmse", labelCol="value", predictionCol="prediction")
with open(folder / "rmse", "w") as out:
    for name, more in (("explicit", {}), ("nonnegative", {"nonnegative": True})):
        model = als(rank=10, maxIter=10, regParam=0.1, **more)
        print(name, rmse.evaluate(model.transform(test)), file=out)
spark.stop()
