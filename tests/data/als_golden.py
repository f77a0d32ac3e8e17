#!/usr/bin/env python3
"""Golden answers for ALS: an independent float64 implementation in NumPy, dense and direct.

Writes als_golden.h beside itself, which tests/unit/core_test.c includes; NumPy is needed only to make it anew:
    python3 tests/data/als_golden.py
Nothing here shares code or a formula's arrangement with extension/core: the weights stand in full matrices, each row
is solved with numpy.linalg.solve, and the loss is the objective summed over all pairs.
"""
import pathlib

import numpy as np

USERS, ITEMS, RANK, ITERATIONS = 40, 30, 5, 3


def penalty(reg, exponent, u, n, m):
    return reg * (n + u * m) ** exponent


def solve(values, other, case):
    """One half-step: rows of values (users or items) against the factors of the other side."""
    m = other.shape[0]
    u = case["unobserved"] if case["implicit"] else 0.0
    rows = []
    for r in values:
        seen = r > 0 if case["implicit"] else r != 0
        if case["implicit"]:
            weight = u + case["alpha"] * r * seen
            target = seen.astype(float)
        else:
            weight = seen.astype(float)
            target = r
        p = penalty(case["regularization"], case["exponent"], u, seen.sum(), m)
        a = other.T @ np.diag(weight) @ other + p * np.eye(RANK)
        rows.append(np.linalg.solve(a, other.T @ (weight * target)))
    return np.array(rows)


def objective(values, x, y, case):
    u = case["unobserved"] if case["implicit"] else 0.0
    seen = values > 0 if case["implicit"] else values != 0
    weight = u + case["alpha"] * values * seen if case["implicit"] else seen.astype(float)
    target = seen.astype(float) if case["implicit"] else values
    loss = (weight * (target - x @ y.T) ** 2).sum()
    for side, n, m in ((x, seen.sum(1), values.shape[1]), (y, seen.sum(0), values.shape[0])):
        for row, count in zip(side, n):
            loss += penalty(case["regularization"], case["exponent"], u, count, m) * (row @ row)
    return loss


def c_array(name, array, kind="double"):
    flat = ", ".join(repr(float(v)) for v in np.asarray(array).ravel())
    return f"static const {kind} {name}[] = {{{flat}}};\n"


def main():
    rng = np.random.default_rng(20261121)
    values = rng.integers(1, 6, (USERS, ITEMS)) * (rng.random((USERS, ITEMS)) < 0.3)
    values[:, 0] = values[:, 0] + (values.sum(1) == 0)  # nobody is without an item,
    values[0] = values[0] + (values.sum(0) == 0)  # and nothing without a user
    start = np.float32(rng.normal(size=(ITEMS, RANK)) * 0.3).astype(float)
    cases = {
        "hkv": dict(implicit=True, alpha=2.0, unobserved=1.0, regularization=0.5, exponent=0.0),
        "rendle": dict(implicit=True, alpha=1.0, unobserved=0.3, regularization=0.02, exponent=1.0),
        "wr": dict(implicit=False, alpha=1.0, unobserved=0.0, regularization=0.1, exponent=1.0),
    }
    out = [f"/* Made by als_golden.py (numpy {np.__version__}); float64. */\n/* clang-format off */\n"]
    out.append(f"#define GOLDEN_USERS {USERS}\n#define GOLDEN_ITEMS {ITEMS}\n#define GOLDEN_RANK {RANK}\n")
    out.append(f"#define GOLDEN_ITERATIONS {ITERATIONS}\n")
    out.append(c_array("golden_values", values, "float"))
    out.append(c_array("golden_start", start, "float"))
    for name, case in cases.items():
        x, y = None, start
        first = None
        for _ in range(ITERATIONS):
            x = solve(values.astype(float), y, case)
            first = x if first is None else first
            y = solve(values.T.astype(float), x, case)
        out.append(c_array(f"golden_{name}_first_users", first))
        out.append(c_array(f"golden_{name}_users", x))
        out.append(c_array(f"golden_{name}_items", y))
        out.append(c_array(f"golden_{name}_loss", [objective(values.astype(float), x, y, case)]))
    out.append("/* clang-format on */\n")
    pathlib.Path(__file__).with_suffix(".h").write_text("".join(out))


if __name__ == "__main__":
    main()
