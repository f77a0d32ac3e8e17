"""What scikit-learn and plain NumPy make of clusters that were made elsewhere: check.py FOLDER

Reads train.csv and test.csv (label, features), sample.csv (the same, fewer rows), centers.csv (a row a cluster), fixed.csv
(centers of a training that went on until no row of train.csv changed its cluster), and scaled.csv (features, then what they
were scaled to); no headings.  Prints "name value" lines.
"""
import sys
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist  # sums squared differences, without the cancellation of |x|^2 - 2xy + |y|^2
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin, silhouette_score
from sklearn.preprocessing import StandardScaler

folder = Path(sys.argv[1])
centers, fixed = (np.loadtxt(folder / name, delimiter=",") for name in ("centers.csv", "fixed.csv"))


def load(name):
    rows = np.loadtxt(folder / name, delimiter=",")
    return rows[:, 0].astype(int), np.ascontiguousarray(rows[:, 1:])


def silhouette(labels, points, squared):
    """By the definition, all pairs, of rows that may be many times the same."""
    rows, n = np.unique(np.column_stack([labels, points]), axis=0, return_counts=True)
    labels, points = rows[:, 0].astype(int), rows[:, 1:]
    member = np.zeros((len(rows), labels.max() + 1))
    member[np.arange(len(rows)), labels] = n
    size = member.sum(axis=0)
    total = 0.0
    for first in range(0, len(rows), 1000):
        part = slice(first, first + 1000)
        sums = cdist(points[part], points, "sqeuclidean" if squared else "euclidean") @ member
        i, own = np.arange(len(sums)), labels[part]
        with np.errstate(divide="ignore", invalid="ignore"):
            a = sums[i, own] / (size[own] - 1)
            mean = sums / size
        mean[:, size == 0] = np.inf
        mean[i, own] = np.inf
        b = mean.min(axis=1)
        total += (n[part] * np.where(size[own] > 1, (b - a) / np.maximum(np.maximum(a, b), 1e-300), 0)).sum()
    return total / n.sum()


for name in ("train", "test"):
    labels, points = load(name + ".csv")
    distance = cdist(points, centers, "sqeuclidean")
    mine, least = distance[np.arange(len(points)), labels], distance.min(axis=1)
    print(name + "_rows", len(points))
    print(name + "_not_nearest", (mine > least * (1 + 1e-12) + 1e-12).sum())
    theirs = pairwise_distances_argmin(points, centers)
    differ = labels != theirs
    # A point between two centers may go to either: its distances are equal but for rounding.
    print(name + "_other_label", (differ & (distance[np.arange(len(points)), theirs] > mine * (1 + 1e-9) + 1e-9)).sum())
    print(name + "_cost", repr(float(mine.sum())))
    if name == "train":
        # From the centers of the other training Lloyd's algorithm goes nowhere.
        again = KMeans(len(fixed), init=fixed, n_init=1, max_iter=300, tol=0).fit(points)
        print("fixed_cost", repr(float(again.inertia_)))
        print("fixed_iterations", again.n_iter_)  # the second finds that no label has changed
        print("fixed_moved", repr(float(np.abs(again.cluster_centers_ - fixed).max())))
        print("one_start_cost", repr(float(KMeans(len(centers), n_init=1, random_state=1).fit(points).inertia_)))
    else:
        print("silhouette", repr(float(silhouette(labels, points, True))))
labels, points = load("sample.csv")
for metric in ("sqeuclidean", "euclidean"):
    theirs = silhouette_score(points, labels, metric=metric)
    print("sample_" + metric, repr(float(theirs)))
    # The definition above is theirs.
    assert abs(theirs - silhouette(labels, points, metric == "sqeuclidean")) < 1e-8
rows = np.loadtxt(folder / "scaled.csv", delimiter=",")
d = rows.shape[1] // 2
scaler = StandardScaler().fit(rows[:, :d])
# scikit-learn divides by n, not n - 1.
print("scaled_differ", repr(float(np.abs(scaler.transform(rows[:, :d]) * np.sqrt((len(rows) - 1) / len(rows)) - rows[:, d:]).max())))
