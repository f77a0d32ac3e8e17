#!/usr/bin/env python3
"""kill.py SEED N_MESSAGES N_FAULTS WORK INI: two ingesters read a topic of 4 partitions while everything dies around them.

Each round sends some messages, stops the transaction that stores them at a point (tests/lib/pgproxy.py) and kills
somebody there: an ingester, its backend, the connection, the whole PostgreSQL, the broker.  After each round one
snapshot must show that every message before the stored positions is in the table or a dead letter, once, and none behind
them.  Ends when everything is stored, with both ingesters stopped by SIGTERM.  Lines for TAP: `ok|not ok NAME`.
"""
import collections
import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

here = os.path.dirname(os.path.abspath(__file__))
lib = os.path.join(here, "../../lib")
sys.path.insert(0, lib)
import pgproxy  # noqa: E402

seed, n_messages, n_faults, work, ini = (int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4],
                                         sys.argv[5])
chance = random.Random(seed)
OUTAGE = float(os.environ.get("OUTAGE", "0"))  # seconds for which one of the broker's deaths lasts
PATIENCE = 90
SESSION = 1.0  # session.timeout.ms of the ingesters, in seconds

# ---- what happens where ----

NAMED = ["before-copy", "mid-copy", "before-commit", "commit-lost", "after-commit"]
OTHERS = ["connect", "partition", "before-offsets", "commit-sent", "settle"]
VICTIMS = ["ingester", "backend", "terminate", "connection", "server"]
# A client does not get the answer that was stopped, unless nobody of his dies.
AT_ANSWER = {"commit-sent", "commit-lost", "after-commit"}


def plan():
    """(point, victim) of each fault; point None: at any time."""
    faults = [(point, "ingester") for point in NAMED]
    faults += [(point, VICTIMS[1 + (number + seed) % 4]) for number, point in enumerate(NAMED)]
    faults += [("commit-lost", "connection"), ("before-commit", "connection"), (None, "broker"), (None, "server"),
               (None, "backend")]
    faults += [(point, chance.choice(VICTIMS)) for point in OTHERS]
    faults += [("before-commit", "pause")]
    rest = [(point, victim) for point in NAMED + OTHERS for victim in VICTIMS if (point, victim) not in faults]
    rest += [("mid-copy", "broker"), (None, "ingester"), (None, "broker"), ("mid-copy", "pause"), (None, "both"),
             ("commit-lost", "both")]
    chance.shuffle(rest)
    faults = (faults + rest)[:n_faults]
    chance.shuffle(faults)
    return faults


# ---- servers ----

def say(text):
    print("# " + text, flush=True)


def value(sql):
    """Answer of the server itself, not through the proxy; None while it is away."""
    done = subprocess.run(["psql", "-AtXqc", sql], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def tool(name, verb, folder):
    done = subprocess.run([os.path.join(lib, name), verb, os.path.join(work, folder)], capture_output=True, text=True)
    if done.returncode != 0:
        say(f"{name} {verb}: {done.stderr}")


def until(what, condition, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not condition():
        supervise()
        if time.monotonic() > deadline:
            say(f"never true within {patience} s: {what}")
            for ingester in ingesters:
                say(f"ingester {ingester.number}: " + ingester.tail(20))
            say(str(value("SELECT pid, state, wait_event, now() - xact_start, query FROM pg_stat_activity"
                          " WHERE backend_type = 'client backend'")))
            return False
        time.sleep(0.02)
    return True


class Ingester:
    def __init__(self, number, port):
        self.number, self.port, self.n_starts, self.process = number, port, 0, None
        self.exits = collections.Counter()

    def start(self):
        self.n_starts += 1
        self.log = open(f"{work}/log.{self.number}.{self.n_starts}", "w", encoding="utf-8")
        self.process = subprocess.Popen(
            [os.environ.get("MILLRACE", "millrace"), "run", ini,
             f"--target.connection=host=127.0.0.1 port={self.port}", "--log.level=info"],
            stdout=self.log, stderr=self.log)
        self.log.close()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def tail(self, n_lines):
        with open(f"{work}/log.{self.number}.{self.n_starts}", encoding="utf-8") as log:
            return "\n#   ".join([""] + log.read().splitlines()[-n_lines:])

    def supervise(self):
        """As systemd does: one that has ended is started again."""
        if self.process is not None and self.process.poll() is not None:
            self.exits[self.process.returncode] += 1
            say(f"ingester {self.number} ended with status {self.process.returncode}: " + self.tail(6))
            if self.exits.total() > 20:
                sys.exit("not ok ingesters do not stay: " + str(dict(self.exits)))
            self.process = None
            time.sleep(0.2)
        if self.process is None:
            self.start()


def supervise():
    for ingester in ingesters:
        ingester.supervise()


# ---- messages ----

BAD = ['{"id": %d, "event_time": "2024-03-01T00:00:00Z", "bad": oops}',
       '{"id": %d, "event_time": "9999-01-01T00:00:00Z", "bad": 1}',
       '{"id": %d, "event_time": "infinity", "bad": 1}',
       '{"id": %d, "event_time": "2024-03-01T00:00:00Z", "amount": "much", "bad": 1}']
START = datetime.datetime(2024, 3, 1, tzinfo=datetime.timezone.utc)
n_made = 0
producers = []


def message(number, day):
    if chance.random() < 0.0005:
        return chance.choice(BAD) % number
    at = START + datetime.timedelta(days=day if chance.random() < 0.1 else 0, seconds=chance.randrange(86400),
                                    microseconds=chance.randrange(10**6))
    return json.dumps({"id": number, "event_time": at.isoformat().replace("+00:00", "Z"),
                       "action": chance.choice(["open", "close", "view", "größer"]),
                       "amount": chance.randrange(10**6) / 100,
                       "user": {"id": chance.randrange(5000), "session": f"{chance.getrandbits(128):032x}"}},
                      ensure_ascii=False)


def produce(n, day):
    """In the background: the broker may be away."""
    global n_made
    path = f"{work}/events.{n_made}"
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(message(n_made + i, day) + "\n" for i in range(n))
    n_made += n
    producers.append((path, send(path)))


def send(path):
    return subprocess.Popen(
        ["kcat", "-P", "-b", os.environ["BROKERS"], "-t", "events", "-X", "sticky.partitioning.linger.ms=0",
         "-X", "enable.idempotence=true", "-l", path], stderr=subprocess.DEVNULL)


def are_sent():
    """Those that gave up while the broker was away are sent again: messages may be in the topic twice."""
    return all(producer.wait() == 0 or send(path).wait() == 0 for path, producer in producers)


def high_watermarks():
    done = subprocess.run(["kcat", "-Q", "-b", os.environ["BROKERS"]] + [
        part for p in range(4) for part in ("-t", f"events:{p}:-1")], capture_output=True, text=True)
    return sum(int(line.split()[-1]) for line in done.stdout.splitlines() if line)


SNAPSHOT = """
    SELECT coalesce(string_agg(format('partition %s: position %s, %s messages stored up to %s, %s of them twice', partition,
        next_offset, n, last, n - n_different), '; '), 'good')
    FROM (SELECT o.partition, next_offset, count(s.at) AS n, count(DISTINCT s.at) AS n_different, max(s.at) AS last
        FROM millrace.ingest_offsets o LEFT JOIN (SELECT kafka_partition AS partition, kafka_offset AS at FROM events
            UNION ALL SELECT partition, "offset" FROM millrace.dead_letters) s USING (partition)
        GROUP BY 1, 2) p
    WHERE (next_offset, n, n_different) IS DISTINCT FROM (coalesce(last + 1, 0), next_offset, next_offset)"""

# ---- faults ----

hits = collections.Counter()
done = collections.Counter()


def strike(victim, stop):
    """Kills the victim.  True: what was stopped may go on."""
    connection = stop.connection if stop else None
    ingester = ingesters[connection.number] if connection else chance.choice(ingesters)
    backend = connection.backend if connection else 0
    if not backend and victim in ("backend", "terminate"):
        backend = int(value("SELECT pid FROM pg_stat_activity WHERE application_name = 'millrace' LIMIT 1") or 0)
    if victim == "ingester":
        ingester.supervise()
        ingester.kill()
    elif victim == "both":
        for each in ingesters:
            each.supervise()
            each.kill()
    elif victim == "connection":
        if connection:
            connection.resets = chance.random() < 0.5
    elif victim == "terminate":
        value(f"SELECT pg_terminate_backend({backend}, 5000)")
        return True
    elif victim == "backend" and backend:
        os.kill(backend, signal.SIGKILL)  # PostgreSQL ends all others and recovers
        return True
    elif victim == "server":
        tool("cluster", "kill", "cluster")
        threading.Timer(chance.random(), tool, ("cluster", "again", "cluster")).start()
        return True
    elif victim == "broker":
        tool("kafka", "kill", "kafka")
        return True
    elif victim == "pause":
        ingester.process.send_signal(signal.SIGSTOP)
        time.sleep(SESSION * 2)
        ingester.process.send_signal(signal.SIGCONT)
        return True
    return False


def round_of(number, point, victim, n):
    """One fault.  False: the point was never reached."""
    stop = pgproxy.Stop(point) if point else None
    lost = pgproxy.Stop("commit-lost") if point == "settle" else None
    if stop:
        proxy.arm(lost or stop)
    if point == "connect":
        value("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'millrace' LIMIT 1")
    produce(n, number)
    if lost:  # what is asked afterwards needs a COMMIT whose answer is lost
        if not until(f"fault {number}: commit-lost is reached", lost.hit.is_set):
            return False
        hits["commit-lost"] += 1
        stop.number = lost.connection.number
        proxy.arm(stop)
        lost.end(False)
    if stop:
        if not until(f"fault {number}: {point} is reached", stop.hit.is_set):
            return False
        hits[point] += 1
        say(f"fault {number}: {victim} at {point}, ingester {stop.connection.number}, hit {hits[point]}")
    else:
        time.sleep(chance.random() / 2)
        say(f"fault {number}: {victim} at any time")
    done[victim] += 1
    goes_on = strike(victim, stop)
    if stop:
        stop.end(goes_on and (point not in AT_ANSWER or victim in ("pause", "broker")))
    if victim == "broker":
        if OUTAGE and done[victim] == 1:
            say(f"the broker is away for {OUTAGE:.0f} s")
            until("the outage is over", lambda end=time.monotonic() + OUTAGE: time.monotonic() > end)
        tool("kafka", "again", "kafka")
    supervise()
    return True


def check(number):
    state = None

    def looks():
        nonlocal state
        state = value(SNAPSHOT)
        return state is not None

    until("PostgreSQL answers", looks)
    if state != "good":
        print(f"not ok fault {number}: {state}", flush=True)
    return state == "good"


say(f"seed {seed}")
proxy = pgproxy.Proxy(os.environ["PGHOST"], int(os.environ["PGPORT"]), 2)
ingesters = [Ingester(number, port) for number, port in enumerate(proxy.ports)]
supervise()
faults = plan()
reached = good = True
began = time.monotonic()
for number, (point, victim) in enumerate(faults, 1):
    reached = round_of(number, point, victim, n_messages // len(faults)) and reached
    good = check(number) and good
    if not good:
        break
    time.sleep(chance.random() / 3)
produce(n_messages - n_made, 0)
produced = are_sent()
arrived = until("everything is stored", lambda: value("SELECT sum(next_offset) FROM millrace.ingest_offsets")
                == str(high_watermarks()), 180)
good = check("last") and good
position = value("SELECT partition, next_offset FROM millrace.ingest_offsets ORDER BY 1")
say("positions: " + str(position).replace("\n", ", "))
status = []
for ingester in ingesters:
    ingester.supervise()
    until("it has begun", lambda i=ingester: os.path.getsize(f"{work}/log.{i.number}.{i.n_starts}") > 0, 5)
    ingester.process.terminate()
    status.append(ingester.process.wait())
exits = ingesters[0].exits + ingesters[1].exits
logs = "".join(open(os.path.join(work, name), encoding="utf-8").read() for name in os.listdir(work)
               if name.startswith("log."))
lost, kept = (logs.count(f"the answer to COMMIT was lost; the batch was {what}") for what in ("not stored", "stored"))
say(f"{sum(done.values())} faults in {time.monotonic() - began:.0f} s: "
    + ", ".join(f"{victim} {n}" for victim, n in sorted(done.items())))
say("hits: " + ", ".join(f"{point} {hits[point]}" for point in NAMED + OTHERS))
say(f"COMMIT unanswered: {kept} stored, {lost} not; {logs.count('has moved the position')} fenced, "
    f"{logs.count('taken away')} partitions taken away; ended by themselves: {dict(exits)}")
if "MILLRACE_KEEP" in os.environ:
    for name in os.listdir(work):
        if name.startswith("log."):
            shutil.copy(os.path.join(work, name), os.environ["MILLRACE_KEEP"])


def ok(is_good, name):
    print(("ok " if is_good else "not ok ") + name, flush=True)


ok(produced, f"{n_made} messages are sent")
ok(sum(done.values()) >= n_faults, f"{n_faults} faults")
ok(reached and all(hits[point] for point in NAMED + OTHERS), "each point is hit")
ok(good, "after each fault the table agrees with the positions")
ok(arrived, "everything is stored in the end")
ok(kept > 0 and lost > 0, "a COMMIT without an answer was found stored, and another one not")
ok(status == [0, 0], f"SIGTERM: status {status}")
ok(set(exits) <= {3, 4}, f"nobody ended by himself, but for a server that was away at his start: {dict(exits)}")
