"""Normal factors for COPY … BINARY of (bigint, real[]), to standard output, a million rows at a time: stream_factors.py ROWS RANK SIGMA

Norms are about the same with SIGMA 0, log-normal otherwise."""
import sys

import numpy as np

CHUNK = 1000000
rows, rank, sigma = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
rng = np.random.default_rng(4)
out = sys.stdout.buffer
out.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
# Two fields; an array has its dimensions, whether NULLs are there, its type, its length and lower bound, and each number its bytes.
row = np.dtype([("fields", ">i2"), ("id_bytes", ">i4"), ("id", ">i8"), ("bytes", ">i4"), ("head", ">i4", 5), ("numbers", np.dtype([("bytes", ">i4"), ("value", ">f4")]), rank)])
for first in range(0, rows, CHUNK):
    n = min(CHUNK, rows - first)
    chunk = np.zeros(n, row)
    chunk["fields"], chunk["id_bytes"], chunk["id"] = 2, 8, np.arange(first, first + n)
    chunk["bytes"], chunk["head"], chunk["numbers"]["bytes"] = 20 + 8 * rank, (1, 0, 700, rank, 1), 4
    chunk["numbers"]["value"] = rng.standard_normal((n, rank), np.float32) * (np.exp(sigma * rng.standard_normal((n, 1), np.float32)) / np.float32(rank**0.5))
    out.write(chunk.data)
out.write(b"\xff\xff")
