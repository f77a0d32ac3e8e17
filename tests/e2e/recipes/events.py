#!/usr/bin/env python3
"""Input of the recipes, the same on every run.

  events.py events COUNTS.csv DIR   100,000 Open and Close events with these hourly counts, at random times of their hour,
                                    in time order in 50 CSV files of 2,000
  events.py tweets FILE             3,000 short texts of nine hours, as JSON lines, times as Twitter writes them
"""
import csv, datetime, json, random, sys
from pathlib import Path

SEED = 6


def events(counts, folder):
    rng = random.Random(SEED)
    rows = []
    for group in csv.DictReader(open(counts)):
        start = datetime.datetime.fromisoformat(group["window_start_utc"])
        for _ in range(int(group["count"])):
            rows.append((start + datetime.timedelta(milliseconds=rng.randrange(3600 * 1000)), group["action"]))
    rows.sort()
    n = len(rows) // 50
    for i in range(50):
        with open(folder / f"{i:02}.csv", "w") as out:
            out.write("time,action\n")
            out.writelines(f"{at.isoformat(timespec='milliseconds')}Z,{action}\n" for at, action in rows[i * n:(i + 1) * n])


def tweets(file):
    rng = random.Random(SEED)
    tags = [f"#tag{i}" for i in range(1, 31)] + ["#emploi", "L’#emploi", "(#emploi)", "#Été", "C#"]
    start = datetime.datetime(2021, 4, 8, 15, 43, 36)
    with open(file, "w") as out:
        for second in sorted(rng.randrange(9 * 3600) for _ in range(3000)):
            words = [rng.choice(["un", "two", "drei", "cuatro", "#", "émoi"]) for _ in range(rng.randrange(1, 6))]
            words += rng.choices(tags, weights=range(len(tags), 0, -1), k=rng.randrange(4))
            words += [f"@user{rng.randrange(20)}"] * (rng.random() < 0.3)
            rng.shuffle(words)
            if rng.random() < 0.2:
                words[:0] = ["RT", f"@user{rng.randrange(20)}:"]
            at = (start + datetime.timedelta(seconds=second)).strftime("%a %b %d %H:%M:%S +0000 %Y")
            text = rng.choice([" ", "  ", "\n", "\t"]).join(words)
            json.dump({"created_at": at, "text": text, "user": {"id": rng.randrange(999)}}, out, ensure_ascii=rng.random() < 0.5)
            out.write("\n")


if sys.argv[1] == "events":
    events(sys.argv[2], Path(sys.argv[3]))
else:
    tweets(sys.argv[2])
