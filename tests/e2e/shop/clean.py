"""What the tables of the shop must hold, from the messages of the topic: reads JSON lines, writes raw.csv and clean.csv into a folder."""
import csv
import decimal
import json
import sys


def missing(value):
    return value is None or value == "NaN"


folder, counts = sys.argv[1], {"good": 0, "bad": 0}
with open(f"{folder}/raw.csv", "w") as raw_file, open(f"{folder}/clean.csv", "w") as clean_file:
    raw, clean = csv.writer(raw_file), csv.writer(clean_file)
    for line in sys.stdin.buffer:
        try:
            event = json.loads(line, parse_float=decimal.Decimal, parse_constant=str)
        except ValueError:
            counts["bad"] += 1
            continue
        # No number is NaN, and these may not be missing.
        if any(missing(event.get(name)) for name in ("id", "event_time", "product_id", "user_id")) or event.get("category_id") == "NaN":
            counts["bad"] += 1
            continue
        counts["good"] += 1
        names = ("id", "event_time", "event_type", "product_id", "category_id", "category_code", "brand", "price", "user_id", "user_session")
        raw.writerow(["\\N" if event.get(name) is None else event[name] for name in names])
        code = [] if missing(event.get("category_code")) else event["category_code"].split(".")
        price = None if missing(event.get("price")) else event["price"]
        clean.writerow([event["id"], event["event_time"], event["event_type"], "other" if missing(event.get("brand")) else event["brand"],
                        "\\N" if price is None else price, code[0] if code else "other", code[-1] if code else "other",
                        price if price is not None and event["event_type"] == "purchase" else 0])
print(counts["good"], counts["bad"])
