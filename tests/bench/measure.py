"""Measuring and reporting, for the cases."""
import os, statistics, subprocess, tempfile, time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import results

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("ROUNDS", "3"))


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, capture_output=True, **options).stdout


def sql(text):
    return run("psql", "-AtXq", "-v", "ON_ERROR_STOP=1", "-c", text).strip()


class Session:
    """A psql that stays, so that plans do, and whose backend's CPU time can be read."""

    def __init__(self, environment={}):
        self.errors = tempfile.TemporaryFile("w+")
        self.psql = subprocess.Popen(["psql", "-AtXq", "-v", "ON_ERROR_STOP=1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=self.errors, text=True, bufsize=1, env={**os.environ, **environment})
        self.pid = self.run("SET client_min_messages = warning; SELECT pg_backend_pid()")

    def run(self, text):
        self.psql.stdin.write(text + ";\nSELECT 'done, says the benchmark';\n")
        lines = []
        while not lines or lines[-1] != "done, says the benchmark":
            lines.append(self.psql.stdout.readline().rstrip("\n"))
            if lines[-1] == "" and self.psql.poll() is not None:
                self.errors.seek(0)
                raise RuntimeError(f"{text[:200]}: {self.errors.read()}")
        return "\n".join(lines[:-1])

    def cpu(self):
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9
        except OSError:
            return float("nan")

    def timed(self, text):
        """Seconds of wall-clock and of CPU time."""
        cpu, wall = self.cpu(), time.monotonic()
        self.run(text)
        return time.monotonic() - wall, self.cpu() - cpu

    def close(self):
        self.psql.stdin.close()
        self.psql.wait()


@contextmanager
def server_settings(**settings):
    """The server has these settings, as one in production does and the harness does not, until the case ends."""
    before = {name: sql(f"SELECT reset_val || coalesce(unit, '') FROM pg_settings WHERE name = '{name}'") for name in settings}

    def configure(values):
        for name, value in values.items():
            sql(f"ALTER SYSTEM SET {name} = '{value}'")
        sql("SELECT pg_reload_conf()")
    configure(settings)
    try:
        yield
    finally:
        configure(before)


def seconds(function):
    start = time.monotonic()
    function()
    return time.monotonic() - start


given = SimpleNamespace(rows=[], points=[], peers={}, rounds=ROUNDS)  # what the case that runs has given so far


def report(case, what, unit, ours, peer, target="", rounds=()):
    """One line: a ratio of wall-clock times or sizes, of CPU times if ours and peer are pairs, and its range over rounds.  The target is that
    of points.csv, or, for what no issue asks, one given here."""
    asked = {point["what"]: point["target"] for point in asked_of(case)}
    target = asked.get(what, target)
    if f"{case}: {what}" in (row["case"] for row in given.rows):
        print(f"# {case}: {what} is given twice", flush=True)
        what += " (2)"
    cpu = ""
    if isinstance(ours, tuple):
        cpu = f"{ours[1] / peer[1]:.2f}" if peer[1] else ""
        ours, peer = ours[0], peer[0]
    ratio = ours / peer if peer else float("nan")
    rounds = sorted(rounds) or [ratio]
    figure = lambda number, digits: "" if number != number else f"{number:.{digits}g}"
    row = dict(case=f"{case}: {what}", unit=unit, ours=figure(ours, 6), peer=figure(peer, 6), ratio=figure(ratio, 5), target=target, met=results.met(ratio, target))
    given.rows.append(row)
    show((case, what, unit, figure(ours, 4), figure(peer, 4), figure(ratio, 3), f"{rounds[0]:.2f}-{rounds[-1]:.2f}" if rounds[0] == rounds[0] else "", cpu, target, row["met"]))


def asked_of(case):
    """What the issues ask of a case, from points.csv: group, case, what, target, asked."""
    return [point for point in results.asked() if point["case"] == case]


def point(curve, series, x, x_unit, value, unit):
    """One measured point of a growth curve, for results/curves.csv and curves.svg."""
    row = dict(curve=curve, series=series, x=f"{x:.6g}", x_unit=x_unit, value=f"{value:.6g}", unit=unit)
    given.points.append(row)
    print(f"  {curve}: {series} at {row['x']} {x_unit}: {row['value']} {unit}", flush=True)


def beside(name, version, origin):
    """Whom the case is measured beside, and where that came from."""
    if given.peers.get(name) != {"version": version, "from": origin}:
        given.peers[name] = {"version": version, "from": origin}
        print(f"# peer: {name} {version}, from {origin}", flush=True)


def beside_psql():
    beside("psql's \\copy", run("psql", "--version").split(") ")[1].split()[0], "the machine's PostgreSQL")


HEADER = ("case", "what", "unit", "ours", "peer", "ratio", "range", "cpu ratio", "target", "met")


def show(row):
    print("".join(f"{field:<{width}}" for field, width in zip(row, (16, 80, 24, 10, 10, 8, 14, 11, 16, 4))).rstrip(), flush=True)


def median_pair(pairs):
    return tuple(statistics.median(column) for column in zip(*pairs))


def compare(case, unit, kinds, rounds=None, warm=True):
    """kinds: {name: (prepare, statements, target)}, the target where points.csv has none, the first one the peer of the others.  In each round
    everything is prepared, which does not count, and the statements are run in turn; sums over a round, medians over the rounds, without the first one if that is to
    warm up."""
    figures = {name: [] for name in kinds}
    kinds = {name: (*kind, "")[:3] for name, kind in kinds.items()}
    for _ in range((rounds or ROUNDS) + warm):
        sessions = {name: Session() for name in kinds}
        sums = {name: [0.0, 0.0] for name in kinds}
        for name, (prepare, _, _) in kinds.items():
            prepare(sessions[name])
        sql("CHECKPOINT")
        order = list(kinds)
        for step in zip(*(statements for _, statements, _ in kinds.values())):
            step = dict(zip(kinds, step))
            for name in order:
                for i, figure in enumerate(sessions[name].timed(step[name])):
                    sums[name][i] += figure
            order.reverse()
        for name, session in sessions.items():
            figures[name].append(tuple(sums[name]))
            session.close()
    peer = next(iter(kinds))
    for name, (_, _, target) in list(kinds.items())[1:]:
        ratios = [a[0] / b[0] for a, b in zip(figures[name][warm:], figures[peer][warm:])]
        report(case, f"{name} / {peer}", unit, median_pair(figures[name][warm:]), median_pair(figures[peer][warm:]), target, ratios)


def interleaved(case, what, unit, ours, peer, target=""):
    """Wall-clock times of two functions."""
    pairs = [(seconds(ours), seconds(peer)) for _ in range(ROUNDS + 1)][1:]
    report(case, what, unit, *(statistics.median(column) for column in zip(*pairs)), target, [a / b for a, b in pairs])


def process_cpu(pid):
    """CPU seconds of a process with all its threads, also those that have ended; to the kernel's clock tick."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return float("nan")


def backends_cpu():
    """CPU seconds of all backends that have ended."""
    pid = Path(sql("SHOW data_directory"), "postmaster.pid").read_text().split()[0]
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
