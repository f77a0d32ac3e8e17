#!/usr/bin/env python3
"""events.py N: CSV of N seeded events with all that CSV may hold; kinds a, b, c and d of 60, 30, 9 and 1 in a hundred."""
import csv
import datetime
import random
import sys

SEED = 20240307
generator = random.Random(SEED)
start = datetime.datetime(2024, 3, 1)
out = csv.writer(sys.stdout, lineterminator="\n")
out.writerow(["id", "event_time", "kind", "note, with a comma", "price", "code"])
for number in range(int(sys.argv[1])):
    place = number % 100
    out.writerow([
        number,
        f"{start + datetime.timedelta(seconds=number * 7):%F %T} UTC",
        "a" if place < 60 else "b" if place < 90 else "c" if place < 99 else "d",
        generator.choice(["plain", 'two "quotes"', "two\nlines", "größer, weiter", "", "tab\there"]),
        f"{generator.randrange(10**6) / 100:.2f}",
        f"{generator.randrange(1000):03}",
    ])
