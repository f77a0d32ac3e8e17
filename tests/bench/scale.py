"""What very large takes, computed from results/bench.csv for extension/SCALING.md: functions of its rows, called by report."""

USERS, ITEMS, EVENTS, RATINGS, RANK = 100e6, 10e6, 1e6, 10e9, 64  # events a second
DAY = 86400
# A node that one can buy.  Half of its cores are for readers, upkeep and replays.
CORES, MEMORY, BANDWIDTH, DISK, WAL = 32, 512e9, 200e9, 30e12, 0.5e9  # bytes a second: of its memory; of WAL, for its disks and its replica
KEEP = 7  # days of raw events
ITERATIONS = 15


class Absent(Exception):
    """A figure that has not been measured."""


wanted = set()  # the rows that were asked for


class Figures:
    def __init__(self, rows):
        self.rows = rows

    def __call__(self, case, field="ours"):
        wanted.add(case)
        try:
            return float(self.rows[case][field])
        except (KeyError, ValueError) as error:
            raise Absent(case) from error


def amount(value, unit):
    """1.23e13 bytes: 12 TB."""
    if unit == "B":
        for name, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{digits(value / size)} {name}"
    if unit == "s":
        for name, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
            if value >= 2 * size or name == "ms" or (name == "s" and value >= 1):
                return f"{digits(value / size)} {name}"
    return f"{digits(value)} {unit}".strip()


def digits(value):
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


def flops(pairs, rows, rank):
    """Of an iteration by the textbook: the matrix of each row, of which half is computed, and its solution."""
    return 2 * pairs * rank**2 + rows * rank**3 / 3


MOVIELENS = 20e6, 138493 + 26744  # pairs; users and items


def per_core(rows, n_processors):
    """Flops a second and core of a training, as measured on 20 M ratings."""
    return flops(*MOVIELENS, RANK) / rows("als20m: rank 64 / implicit's conjugate gradients") / n_processors


def very_large(figures):
    """The table of the page."""
    import math
    import results
    rows, n = Figures(figures), results.read_machine().get("machine", {}).get("processors", 2)
    lines = ["| what | computed | from |", "| --- | --- | --- |"]

    def line(what, compute):
        try:
            value, why = compute()
        except Absent as absent:
            value, why = "not measured", f"needs `{absent}`"
        lines.append(f"| {what} | {value} | {why} |")

    def ingest_us():
        return rows("groups: CPU of the ingesters, 4 ingesters / one", "peer"), rows("groups: CPU of the backends, 4 ingesters / one", "peer")

    def ingest_cores():
        ingester, backend = ingest_us()
        return EVENTS * (ingester + backend) / 1e6

    def event_bytes():
        return rows("sizing: an event in operations_raw / as JSON"), rows("sizing: the same in operations")

    def wal():
        return EVENTS * rows("sizing: WAL of an event: pipe, aggregate, both tables / one plain table")

    def nodes():
        return max(math.ceil(ingest_cores() / (CORES / 2)), math.ceil(wal() / WAL), math.ceil(DAY * EVENTS * sum(event_bytes()) * KEEP / DISK))

    def factors():
        return (USERS + ITEMS) * rows("sizing: stored factors, rank 64 / 4 bytes a number")

    def cache():
        return (USERS + ITEMS) * rows("sizing: cache file, rank 64 / 4 bytes a number")

    def iteration():
        return flops(RATINGS, USERS + ITEMS, RANK) / per_core(rows, n)

    def touched():
        return 2 * RATINGS * RANK * 4

    def memory_time():
        return touched() / min(CORES * bandwidth(rows), BANDWIDTH)

    lines.append(f"| **{EVENTS:,.0f} events a second** | | |")
    line("processor: decode, COPY, pipe, aggregate", lambda: (
        f"{digits(ingest_cores())} cores busy", "events × ({:.2g} µs in the ingester + {:.2g} µs in its backend), `groups` with one ingester".format(*ingest_us())))
    line("the same with the shop's scorer, history, alert, readers and upkeep", lambda: (
        f"{digits(EVENTS / rows('load: 10,000 events/s: what a core stores: by the CPU of ingester and its sessions; of the sessions alone'))} cores busy",
        f"{digits(rows('load: 10,000 events/s: what a core stores: by the CPU of ingester and its sessions; of the sessions alone'))} events a second and core, `load` at 10,000 a second"))
    line("partitions of the topic, and ingesters, at least", lambda: (
        f"{math.ceil(EVENTS / rows('ingest: Kafka, with pipe and aggregate / psql copy'))}",
        f"one ingester with a pipe and an aggregate stores {digits(rows('ingest: Kafka, with pipe and aggregate / psql copy'))} rows a second where {n} cores are all there are, `ingest`"))
    line("network from the brokers", lambda: (f"{amount(EVENTS * rows('sizing: an event in operations_raw / as JSON', 'peer'), 'B')}/s", f"{rows('sizing: an event in operations_raw / as JSON', 'peer'):.0f} bytes of JSON an event, `sizing`; librdkafka's compression takes off what it takes off"))
    line("disk a day: raw and clean events", lambda: (f"{amount(DAY * EVENTS * event_bytes()[0], 'B')} + {amount(DAY * EVENTS * event_bytes()[1], 'B')}", "{:.0f} + {:.0f} bytes an event, `sizing`".format(*event_bytes())))
    line("… for the states of an aggregate of 10,000 groups a minute", lambda: (
        amount(1440 * 10000 * rows("sizing: the same after maintain and VACUUM"), "B"), f"{rows('sizing: the same after maintain and VACUUM'):.0f} bytes a group, whatever the events are"))
    line("WAL", lambda: (f"{amount(wal(), 'B')}/s, {amount(wal() * DAY, 'B')} a day", f"{wal() / EVENTS:.0f} bytes an event with both tables, pipe and aggregate, `sizing`"))
    line(f"nodes of {CORES} cores (half of them for this), {amount(DISK, 'B')} of disk, {amount(WAL, 'B')}/s of WAL, raw and clean events kept {KEEP} days", lambda: (
        f"{nodes()}", f"{math.ceil(ingest_cores() / (CORES / 2))} by processor, {math.ceil(wal() / WAL)} by WAL, {math.ceil(DAY * EVENTS * sum(event_bytes()) * KEEP / DISK)} by disk: [several nodes](#several-nodes)"))
    lines.append(f"| **Training on {RATINGS / 1e9:.0f} billion pairs**, {USERS / 1e6:.0f} M users, {ITEMS / 1e6:.0f} M items, rank {RANK} | | |")
    line("processor: an iteration", lambda: (
        f"{amount(iteration(), 's')} of a core; {amount(iteration() / CORES, 's')} on {CORES}",
        f"2 × pairs × rank² + rows × rank³ / 3 flops, at {per_core(rows, n) / 1e9:.0f} GFLOP/s a core, `als20m`; there the factors fit into the cache, here not:"))
    line("… and at least, for reading a factor for each pair and side from memory", lambda: (
        f"{amount(touched() / bandwidth(rows), 's')} of a core; {amount(memory_time(), 's')} on {CORES}",
        f"2 × pairs × 4 × rank bytes, in order {bandwidth(rows) / 1e9:.0f} GB/s a core, `million`, and {BANDWIDTH / 1e9:.0f} GB/s for all cores; in no order it is more"))
    line(f"a training of {ITERATIONS} iterations on {CORES} cores", lambda: (
        f"{amount(ITERATIONS * max(iteration() / CORES, memory_time()), 's')} to {amount(ITERATIONS * (iteration() / CORES + memory_time()), 's')}", "the larger of the two, if they overlap; the sum, if not"))
    line("reading the pairs from a table, most of which one core does", lambda: (
        amount(RATINGS / 20e6 * rows("als20m: reading shuffled, into sparse rows / SELECT sum(value)"), "s"),
        f"{digits(20e6 / rows('als20m: reading shuffled, into sparse rows / SELECT sum(value)'))} rows a second in no order, `als20m`"))
    line("memory (`millrace.max_memory`)", lambda: (
        amount(memory(rows), "B"), f"{bytes_a_pair(rows):.0f} bytes a pair and 8 × rank a user and item, `sizing`; {MEMORY / 1e9:.0f} GB hold that" if memory(rows) < MEMORY else f"{bytes_a_pair(rows):.0f} bytes a pair, `sizing`: more than {MEMORY / 1e9:.0f} GB, so [Spark](#training-on-spark)"))
    line("the same on Spark", lambda: (
        f"{amount(ITERATIONS * iteration() / per_spark(rows), 's')} of a core", f"MLlib's `fit` takes {digits(1 / per_spark(rows))} times as long on two cores, `journey`; but on as many machines as there are"))
    lines.append("| **The model** | | |")
    line("stored", lambda: (amount(factors(), "B"), f"{rows('sizing: stored factors, rank 64 / 4 bytes a number'):.0f} bytes a user or item, each version, `sizing`"))
    line("cache file on each server that serves", lambda: (amount(cache(), "B"), f"{rows('sizing: cache file, rank 64 / 4 bytes a number'):.0f} bytes, of which memory holds what is used: of items all of it"))
    line("what users have (`track_history`)", lambda: (amount(RATINGS * rows("sizing: what users have, a pair"), "B"), f"{rows('sizing: what users have, a pair'):.0f} bytes a pair, `sizing`"))
    lines.append(f"| **Serving from {ITEMS / 1e6:.0f} M items** | | |")
    line("reading all of them once", lambda: (
        f"{amount(ITEMS * RANK * 4, 'B')}, {amount(ITEMS * RANK * 4 / bandwidth(rows), 's')}", f"4 × rank bytes an item, {bandwidth(rows) / 1e9:.0f} GB/s a core, `million`"))
    for kind, what, why in (("normal factors", "a call, if items are all alike (the worst there is)", f"the index reads a byte a number, {amount(ITEMS * RANK, 'B')}, more than a cache holds, and the factors of few"),
                            ("log-normal norms", "a call, if some items are better than others, as they are when trained", "of most items the index reads nothing")):
        line(what, lambda kind=kind, why=why: (
            f"{amount(rows(f'many_items: {ITEMS:,.0f} items, {kind}, all of them: a call, median') / 1e3, 's')}: {digits(1e3 / rows(f'many_items: {ITEMS:,.0f} items, {kind}, all of them: a call, CPU'))} calls a second and core",
            f"**measured** with ten million items, `many_items`: {why}"))
    line("a call among 10,000 candidates", lambda: (
        f"{amount(rows(f'many_items: {ITEMS:,.0f} items, normal factors, 10,000 candidates: a call, median') / 1e3, 's')}: {digits(1e3 / rows(f'many_items: {ITEMS:,.0f} items, normal factors, 10,000 candidates: a call, CPU'))} calls a second and core", "**measured** there, with a query that names them"))
    line("lists of all users once, at night", lambda: (
        f"{amount(USERS / rows(f'many_items: {ITEMS:,.0f} items, log-normal norms: lists of 10, 5,000 users at once'), 's')} of a core; {amount(USERS / rows(f'many_items: {ITEMS:,.0f} items, log-normal norms: lists of 10, 5,000 users at once') / CORES, 's')} on {CORES}",
        f"{digits(rows(f'many_items: {ITEMS:,.0f} items, log-normal norms: lists of 10, 5,000 users at once'))} users a second and core, `many_items`"))
    return "\n".join(lines)


def bandwidth(rows):
    """Bytes a second that a core reads, as the peer of a call on a million items."""
    return 1e6 * RANK * 4 / (rows("million: normal factors / reading the factors", "peer") / 1e3)


def bytes_a_pair(rows):
    """What a training on 20 M pairs takes beyond 8 × rank bytes a user and item."""
    return (rows("als20m: rank 64, peak memory / 2 GB") * 1e6 - 8 * RANK * MOVIELENS[1]) / MOVIELENS[0]


def memory(rows):
    return RATINGS * bytes_a_pair(rows) + 8 * RANK * (USERS + ITEMS)


def per_spark(rows):
    return rows("journey: 10 iterations / Spark's fit, 4 blocks", "ratio")
