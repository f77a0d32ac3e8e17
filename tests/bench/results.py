"""What was measured, on disk: results/bench.csv, curves.csv and machine.json, written after each case.

A run of some cases replaces what these gave before and keeps the rest.  Figures of two machines do not mix: on another one everything
begins anew, and what was there stays beside it as *.old.  BENCH_RESULTS names another folder.
"""
import csv, json, os, platform, re, subprocess
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("BENCH_RESULTS", ROOT / "tests/bench/results"))
COLUMNS = {"bench": ("case", "unit", "ours", "peer", "ratio", "target", "met"),
           "curves": ("curve", "series", "x", "x_unit", "value", "unit")}


def met(ratio, target):
    """Whether a ratio is what a target asks for ("<= 1/9", ">= 1.8", "1 +- 0.001"): "yes", "no", or "" without a target."""
    if not target:
        return ""
    found = re.fullmatch(r"(<=|>=) (\d[\d./]*)|(\d[\d./]*) \+- (\d[\d./]*)", target)
    if not found:
        raise ValueError(f"no target: {target!r}")
    sign, limit, middle, distance = found.groups()
    if ratio is None or ratio != ratio:
        return "no"
    if sign:
        return "yes" if (ratio <= value(limit) if sign == "<=" else ratio >= value(limit)) else "no"
    return "yes" if abs(ratio - value(middle)) <= value(distance) else "no"


def value(number):
    """Of "0.02" or "1/1.5"."""
    numerator, _, denominator = number.partition("/")
    return float(numerator) / float(denominator or 1)


def machine():
    """What figures belong to."""
    cpuinfo = Path("/proc/cpuinfo")
    model = next((line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), "") if cpuinfo.exists() else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "") if cpuinfo.exists() else ""
    vectors = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags.split()), "")
    return {"processors": os.cpu_count(), "model": model or platform.machine(), "vectors": vectors, "memory_gb": round(memory), "system": f"{platform.system()} {platform.release()}"}


def read(name, folder=None):
    """Rows of bench or curves, as dictionaries."""
    path = Path(folder or FOLDER) / f"{name}.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_machine(folder=None):
    path = Path(folder or FOLDER) / "machine.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_file(path, text):
    """As a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.replace(path)


def write(name, rows):
    lines = [COLUMNS[name], *([row[column] for column in COLUMNS[name]] for row in rows)]
    class Text(list):
        write = list.append
    text = Text()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_file(FOLDER / f"{name}.csv", "".join(text))


def begin(versions):
    """Before the first case: what there is of another machine or PostgreSQL goes aside."""
    now = {"machine": machine(), "versions": versions}
    old = read_machine()
    of = lambda what: (what.get("machine", {}).get("processors"), what.get("machine", {}).get("model"), what.get("versions", {}).get("PostgreSQL", "").split(".")[0])
    if old and of(old) != of(now):
        print(f"# {FOLDER} has figures of another machine: they are kept as *.old", flush=True)
        for path in FOLDER.glob("*"):
            if path.suffix in (".csv", ".json", ".svg"):
                path.replace(path.with_name(path.name + ".old"))
        old = {}
    write_machine({**old, **now, "date": today(), "peers": old.get("peers", {}), "cases": old.get("cases", {})})


def today():
    return datetime.now(timezone.utc).strftime("%F")


def write_machine(what):
    write_file(FOLDER / "machine.json", json.dumps(what, indent=1, sort_keys=True) + "\n")


def add(case, rows, points, run, peers):
    """The rows of a case that has ended, the points of its curves, how its run went, and whom it was measured beside."""
    write("bench", [row for row in read("bench") if owner(row) != case] + rows)
    complete()
    drawn = {point["curve"] for point in points}
    if drawn:
        write("curves", [point for point in read("curves") if point["curve"] not in drawn] + points)
    what = read_machine()
    what.setdefault("cases", {})[case] = {"date": today(), **run}
    what.setdefault("peers", {}).update(peers)
    write_machine({**what, "date": today()})


def complete():
    """What is asked and was never measured is not met, nor is a case that was never run; targets are those of now; cases stand in their order."""
    points = {f"{point['case']}: {point['what']}" for point in asked()}
    # A row without a unit was not measured: it stays while it is asked for, or tells why.
    rows = {row["case"]: row for row in read("bench") if row["unit"] or row["ours"] or row["case"] in points or ": failed: " in row["case"]}
    for point in asked():
        name = f"{point['case']}: {point['what']}"
        row = rows.setdefault(name, unmeasured(point["case"], point["what"]))
        if row["target"] != point["target"]:
            row.update(target=point["target"], met=met(float(row["ratio"] or "nan"), point["target"]))
    there = {owner(row) for row in rows.values()}
    for case in cases():
        if case not in there:
            rows[case] = unmeasured(case, "not run")
    order = list(groups())
    write("bench", sorted(rows.values(), key=lambda row: order.index(owner(row)) if owner(row) in order else len(order)))


def owner(row):
    return row["case"].split(":")[0]


def unmeasured(case, what, target=""):
    return dict(case=f"{case}: {what}", unit="", ours="", peer="", ratio="", target=target, met="no")


def asked():
    """What the issues ask: group, case, what, target, asked."""
    with open(ROOT / "tests/bench/points.csv", newline="") as file:
        return list(csv.DictReader(file))


def cases():
    """The names of all cases of this folder."""
    here = ROOT / "tests/bench"
    return re.findall(r"^def case_(\w+)\(", "".join(path.read_text() for path in [here / "run", *sorted(here.glob("*.py"))]), re.M)


def groups():
    """{case: the group it belongs to}"""
    return {point["case"]: point["group"] for point in asked()}
