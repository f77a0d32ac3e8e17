"""What Spark MLlib makes of the ratings in a folder: spark.py FOLDER

Reads train.csv and test.csv (user, item, value; no heading).  Writes, for tables of PostgreSQL:
  users.csv, items.csv   id, factors of the implicit model
  lists.csv              user, rank, item, score: its recommendForAllUsers
  rmse                   one line a model, "name value": RMSE on the test pairs whose user and item are in train.csv
Reads lines.csv (is it of the training, day, unit price, quantity, cluster from elsewhere).  Writes
  clusters               lines "name value": labels (of the day, in the order of their indexes), size (of a vector of features),
                         mean and deviation (of each feature), silhouette (of those clusters, on the lines that are not of the
                         training), cost (of Spark's own k-means)
"""
import csv
import sys
from pathlib import Path

from pyspark.ml import Pipeline
from pyspark.ml.clustering import KMeans
from pyspark.ml.evaluation import ClusteringEvaluator, RegressionEvaluator
from pyspark.ml.feature import OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
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

lines = spark.read.csv(str(folder / "lines.csv"), schema="train boolean, day string, unit_price double, quantity double, prediction int")
pipeline = Pipeline(stages=[
    StringIndexer(inputCol="day", outputCol="day_index"),
    OneHotEncoder(inputCols=["day_index"], outputCols=["days"]),
    VectorAssembler(inputCols=["unit_price", "quantity", "days"], outputCol="features"),
    StandardScaler(inputCol="features", outputCol="scaled", withMean=True, withStd=True)]).fit(lines.where("train"))
features = pipeline.transform(lines).select("train", "features", "prediction").coalesce(4).cache()
train = features.where("train").drop("prediction")
labels, scaler = pipeline.stages[0].labels, pipeline.stages[3]
with open(folder / "clusters", "w") as out:
    print("labels", ",".join(labels), file=out)
    print("size", train.first().features.size, file=out)
    print("mean", ",".join(map(repr, map(float, scaler.mean))), file=out)
    print("deviation", ",".join(map(repr, map(float, scaler.std))), file=out)
    evaluator = ClusteringEvaluator(featuresCol="features", predictionCol="prediction", metricName="silhouette", distanceMeasure="squaredEuclidean")
    print("silhouette", repr(evaluator.evaluate(features.where("NOT train"))), file=out)
    print("cost", repr(KMeans(k=20, seed=1, featuresCol="features").fit(train).summary.trainingCost), file=out)
spark.stop()
