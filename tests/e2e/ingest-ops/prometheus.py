#!/usr/bin/env python3
"""Is standard input a page in Prometheus' text format 0.0.4?  Prints the samples' names, with the type of their family."""
import re
import sys

sample_re = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? (\S+)$')
types, family, seen, buckets = {}, None, set(), {}
for line in sys.stdin.read().splitlines():
    words = line.split(" ", 3)
    if line.startswith("# HELP "):
        family = words[2]
        assert family not in types, f"{family} comes twice"
        types[family] = None
    elif line.startswith("# TYPE "):
        assert words[2] == family and types[family] is None, line
        assert words[3] in ("counter", "gauge", "histogram"), line
        types[family] = words[3]
    else:
        match = sample_re.match(line)
        assert match, f"not a sample: {line}"
        name, labels, value = match.groups()
        kind = types[family]
        wanted = {family + s for s in ("_bucket", "_sum", "_count")} if kind == "histogram" else {family}
        assert name in wanted, f"{name} under {family}"
        assert kind != "counter" or name.endswith("_total"), name
        assert (name, labels) not in seen, f"{line} comes twice"
        seen.add((name, labels))
        float(value)
        if name.endswith("_bucket"):
            last = buckets.get(name, (float("-inf"), 0))
            now = (float(re.search(r'le="([^"]*)"', labels)[1]), float(value))
            assert now[0] > last[0] and now[1] >= last[1], line
            buckets[name] = now
        print(name, kind)
assert all(types.values()) and seen
