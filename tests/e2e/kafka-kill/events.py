#!/usr/bin/env python3
"""events.py N: N seeded JSON events of three days, one a line."""
import datetime
import json
import random
import sys

SEED = 20240301
generator = random.Random(SEED)
start = datetime.datetime(2024, 3, 1, tzinfo=datetime.timezone.utc)
print(f"# seed {SEED}", file=sys.stderr)
for number in range(int(sys.argv[1])):
    time = start + datetime.timedelta(seconds=generator.randrange(3 * 86400), microseconds=generator.randrange(10**6))
    print(json.dumps({
        "id": number,
        "event_time": time.isoformat().replace("+00:00", "Z"),
        "action": generator.choice(["open", "close", "view", "größer"]),
        "amount": generator.randrange(10**6) / 100,
        "user": {"id": generator.randrange(5000), "session": f"{generator.getrandbits(128):032x}"},
    }, ensure_ascii=False))
