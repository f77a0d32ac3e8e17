#!/usr/bin/env python3
"""
Stress of streams: writers, maintenance, DDL and a reader of invariants beside one another, and a crash.
usage: stress.py SECONDS SEED DIR [nodml] [noddl] [nocrash]; DIR is the folder of tests/lib/cluster, $CLUSTER its path.
What sessions do when is left to chance; each violation of an invariant, and each error that a user should not see, fails it.
"""
import datetime, glob, os, random, signal, subprocess, sys, threading, time, zlib

seconds, seed, cldir = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
flags = set(sys.argv[4:])
DML, DDL, CRASH = 'nodml' not in flags, 'noddl' not in flags, 'nocrash' not in flags
stopping, crashing = threading.Event(), threading.Event()
problems, stats, lock = [], {}, threading.Lock()
t0 = time.time()

def problem(text):
    with lock:
        problems.append(text)
        if len(problems) < 40:
            print('%6.1f PROBLEM %s' % (time.time() - t0, text[:1500]), flush=True)

def count(what, n=1):
    with lock:
        stats[what] = stats.get(what, 0) + n

class Lost(Exception):
    pass

class Session:
    def __init__(self, name, opts=''):
        self.name, self.opts, self.n = name, opts, 0
        self.connect()
    def connect(self):
        for _ in range(200):
            env = dict(os.environ, PGAPPNAME=self.name, PGOPTIONS='-c client_min_messages=warning ' + self.opts)
            self.p = subprocess.Popen(['psql', '-XqAt', '-F', '\t', '-v', 'VERBOSITY=verbose', '-v', 'SHOW_CONTEXT=always'], env=env,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            try:
                if self.run('SELECT 1') == ['1']:
                    return
            except Lost:
                pass
            time.sleep(0.2)
        raise SystemExit('no server')
    def run(self, sql):
        """lines of output; errors are in self.error"""
        self.n += 1
        mark = '<<%d>>' % self.n
        try:
            self.p.stdin.write(sql.rstrip(';') + ';\n\\echo ' + mark + '\n')
            self.p.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise Lost()
        out, self.error = [], None
        while True:
            line = self.p.stdout.readline()
            if not line:
                raise Lost()
            line = line.rstrip('\n')
            if line == mark:
                break
            if line.startswith(('ERROR:', 'FATAL:', 'PANIC:')):
                self.error = self.error or line
            out.append(line)
        text = '\n'.join(out)
        if 'server closed the connection' in text or 'connection to server was lost' in text or 'FATAL:' in text or 'no connection to the server' in text:
            raise Lost()
        if self.error:
            self.error = text
        return out

SPEED = 60      # event seconds in a second
def now_event():
    return (time.time() - t0) * SPEED
def at(rng):
    e = now_event() + rng.uniform(-20, 0)
    r = rng.random()
    if r < 0.10: e -= rng.uniform(60, 300)
    elif r < 0.14: e -= rng.uniform(300, 1800)
    return max(e, 1)

AGGS = {}
def agg(name, query, watermark='2 minutes', late='update', more=''):
    AGGS[name] = "SELECT millrace.create_continuous_aggregate('%s', $$%s$$, %s, late_policy => '%s'%s)" % (
        name, query, "watermark => '%s'" % watermark if watermark else 'NULL', late, more)
VALS = "count(*) AS n, sum(v) AS total, avg(v) AS mean, max(v) AS most"
for late in ('update', 'drop', 'divert'):
    agg('t_' + late, "SELECT millrace.tumble(at, '1 minute') AS window_start, k, %s FROM ev GROUP BY 1, 2" % VALS, late=late)
    agg('h_' + late, "SELECT millrace.hop(at, '6 minutes', '2 minutes') AS window_start, %s FROM ev WHERE v > 3 GROUP BY 1" % VALS, late=late)
    agg('s_' + late, "SELECT u, window_start, count(*) AS n, sum(v) AS total FROM (SELECT *, millrace.session(at, '1 minute') OVER (PARTITION BY u ORDER BY at) AS window_start FROM ev) q GROUP BY 1, 2", late=late)
    agg('j_' + late, "SELECT millrace.tumble(e.at, '1 minute') AS window_start, d.title, %s FROM ev e JOIN dim d USING (k) GROUP BY 1, 2" % VALS.replace('(v)', '(e.v)'), late=late)
agg('plain', "SELECT millrace.tumble(at, '5 minutes') AS window_start, k, u %% 3 AS g, %s FROM ev GROUP BY 1, 2, 3" % VALS, watermark=None)
agg('susp', "SELECT millrace.tumble(at, '1 minute') AS window_start, count(*) AS n, sum(100 / (v + 1)) AS x FROM ev GROUP BY 1", more=", on_error => 'suspend'")
AGGS['roll'] = "SELECT millrace.create_continuous_aggregate('roll', $$SELECT millrace.tumble(window_start, '10 minutes') AS window_start, k, sum(n) AS n, sum(total) AS total, max(most) AS most FROM t_update GROUP BY 1, 2$$)"
AGGS['roll2'] = "SELECT millrace.create_continuous_aggregate('roll2', $$SELECT millrace.hop(window_start, '20 minutes', '10 minutes') AS window_start, sum(n) AS n FROM roll GROUP BY 1$$)"
EXACT = ['t_update', 'h_update', 's_update', 'j_update', 'plain', 'susp', 'roll', 'roll2']
FINAL = [a for a in AGGS if a != 'plain']

def setup():
    s = Session('setup')
    def do(sql):
        s.run(sql)
        if s.error: raise SystemExit(sql + '\n' + s.error)
    do('CREATE EXTENSION IF NOT EXISTS millrace')
    do('CREATE TABLE ev (at timestamptz NOT NULL, k text, u int, v int) PARTITION BY RANGE (at)')
    do("SELECT millrace.create_source('ev', 'at')")
    for i in range(int((seconds + 30) * SPEED / 1200) + 2):
        if i % 3 == 1:
            do('CREATE TABLE ev_%d (v int, gone int, u int, at timestamptz NOT NULL, k text)' % i)
            do('ALTER TABLE ev_%d DROP gone' % i)
        else:
            do('CREATE TABLE ev_%d (LIKE ev)' % i)
        do("ALTER TABLE ev ATTACH PARTITION ev_%d FOR VALUES FROM ('%s') TO ('%s')" % (i, stamp(i * 1200), stamp((i + 1) * 1200)))
    do("CREATE TABLE dim (k text PRIMARY KEY, title text)")
    do("INSERT INTO dim SELECT chr(97 + i), 'T' || i % 2 FROM generate_series(0, 2) i")
    for a, sql in AGGS.items():
        do(sql)
    do("SELECT millrace.create_alert('big', 'SELECT * FROM t_update WHERE n > 30 AND final')")
    do("SELECT millrace.create_alert('now', 'SELECT window_start, k, n FROM t_update WHERE n > 25')")
    s.p.stdin.close()

def stamp(sec):
    return (datetime.datetime(2024, 1, 1) + datetime.timedelta(seconds=sec)).strftime('%Y-%m-%d %H:%M:%S.%f') + '+00'

def row(rng):
    return (stamp(at(rng)), 'abcde'[rng.randrange(5)], rng.randrange(12), rng.randrange(50))

def values(rng, n):
    return ', '.join("('%s', '%s', %d, %d)" % row(rng) for _ in range(n))

def writer(i, rr):
    rng = random.Random(seed * 100 + i)
    s = Session('w%d%s' % (i, 'rr' if rr else 'rc'))
    def do(sql):
        """False: the transaction is over"""
        s.run(sql)
        if s.error:
            if '40001' in s.error and rr:
                count('40001')
            elif 'violates partition constraint' in s.error or 'no partition of relation' in s.error and DDL:
                count('no partition')
            elif '40P01' in s.error and DDL and leaf[0]:  # DETACH locks the parent first, who writes a leaf that leaf
                count('deadlock with ddl')
            else:
                problem('%s: %s\n%s' % (s.name, sql[:200], s.error))
            s.run('ROLLBACK')
            return False
        return True
    leaf = [False]
    def one():
        r = 0.65 + 0.15 * rng.random() if leaf[0] else rng.random()
        if DDL and not leaf[0] and 0.65 <= r < 0.8: r = 0
        n = rng.choice([1, 1, 2, 5, 20, 100])
        if r < 0.45:
            return do('INSERT INTO ev VALUES ' + values(rng, n))
        if r < 0.65:
            rows = [row(rng) for _ in range(n)]
            return do('COPY ev FROM stdin;\n' + ''.join('\t'.join(map(str, x)) + '\n' for x in rows) + '\\.\nSELECT 1')
        if r < 0.80:
            p = leaf[1] if DDL and leaf[0] else int(now_event() // 1200)
            lo, hi = p * 1200, min(max(now_event(), p * 1200 + 1), p * 1200 + 1199)
            return do('INSERT INTO ev_%d (at, k, u, v) VALUES ' % p + ', '.join("('%s', '%s', %d, %d)" % ((stamp(rng.uniform(max(lo, hi - 200), hi)),) + row(rng)[1:]) for _ in range(n)))
        if not DML:
            return True
        t = stamp(max(0, now_event() - rng.choice([5, 30, 200, 900])))
        if r < 0.86:
            return do("UPDATE ev SET v = v + 1 WHERE at BETWEEN '%s'::timestamptz - interval '10 s' AND '%s' AND u = %d" % (t, t, i))
        if r < 0.90:
            return do("UPDATE ev SET at = at - interval '%d s' WHERE at BETWEEN '%s'::timestamptz - interval '10 s' AND '%s' AND u = %d AND at > '2024-01-01 00:10'" % (rng.choice([5, 90, 400]), t, t, i))
        return do("DELETE FROM ev WHERE at BETWEEN '%s'::timestamptz - interval '5 s' AND '%s' AND u = %d" % (t, t, i))
    while not stopping.is_set():
        try:
            r = rng.random()
            leaf[:] = [DDL and rng.random() < 0.15, int(now_event() // 1200)]
            if r < 0.4:
                if rr: s.run('SET default_transaction_isolation = \'repeatable read\'')
                one()
            else:
                ok = do('BEGIN ISOLATION LEVEL ' + ('REPEATABLE READ' if rr else 'READ COMMITTED'))
                if rr and rng.random() < 0.5:
                    s.run('SELECT 1 FROM dim LIMIT 1'); time.sleep(rng.choice([0, 0.05, 0.5]))
                for _ in range(rng.randrange(1, 4)):
                    if not ok: break
                    if rng.random() < 0.4:
                        ok = do('SAVEPOINT a') and one()
                        if ok and rng.random() < 0.5: ok = do('ROLLBACK TO a')
                        elif ok: ok = do('RELEASE a')
                    else:
                        ok = one()
                    time.sleep(rng.choice([0, 0, 0.02, 0.1, 0.5 if rng.random() < .1 else 0]))
                if ok:
                    do('ROLLBACK' if rng.random() < 0.15 else 'COMMIT')
            count('tx ' + s.name)
            time.sleep(rng.choice([0, 0.005, 0.02]))
        except Lost:
            if not crashing.is_set() and not stopping.is_set(): problem(s.name + ': connection lost')
            s.connect()

def loop(name, body, pause):
    rng = random.Random(seed * 1000 + zlib.crc32(name.encode()) % 1000)
    s = Session(name)
    while not stopping.is_set():
        try:
            sql = body(rng)
            for x in sql if isinstance(sql, list) else [sql]:
                s.run(x)
                if s.error:
                    expected = ('55000' in s.error or '42710' in s.error or '42704' in s.error and DDL or '40P01' in s.error and name == 'ddl' or '55006' in s.error and DDL)
                    if not expected:
                        problem('%s: %s\n%s' % (name, x[:300], s.error))
                    else:
                        count('expected ' + name)
                    s.run('ROLLBACK')
                    break
                count(name)
                if isinstance(sql, list): time.sleep(0.3)
            time.sleep(rng.uniform(*pause))
        except Lost:
            if not crashing.is_set() and not stopping.is_set(): problem(name + ': connection lost')
            s.connect()

NOROLL = [a for a in AGGS if not a.startswith('roll')]
def attach(p):
    return "ALTER TABLE ev ATTACH PARTITION ev_%d FOR VALUES FROM ('%s') TO ('%s')" % (p, stamp(p * 1200), stamp((p + 1) * 1200))

detached = []
def ddl(rng):
    if detached:  # a crash or a deadlock may have come between its detaching and attaching, or taken the answer away
        p = detached.pop()
        return "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = 'ev_%d'::regclass) THEN %s; END IF; END $$" % (p, attach(p))
    r = rng.random()
    a = rng.choice(NOROLL)
    if r < 0.4:
        return ["SELECT millrace.stop_stream('%s')" % a, "SELECT millrace.start_stream('%s')" % a]
    if r < 0.7:
        a = rng.choice([x for x in AGGS if x not in ('t_update', 'roll')])
        with lock: replaced[a] = replaced.get(a, 0) + 1
        return AGGS[a]
    p = rng.randrange(0, max(1, int(now_event() // 1200) - 1))
    detached.append(p)
    return ["ALTER TABLE ev DETACH PARTITION ev_%d" % p, attach(p)]
replaced = {}

COLS = {}

def reader():
    s = Session('reader')
    for a in AGGS:
        COLS[a] = s.run("SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '%s_query'::regclass AND attnum > 0" % a)[0]
    seen, cursor, state, oids, gen = {}, {}, {}, {}, {}
    rng = random.Random(seed)
    while not stopping.is_set():
        try:
            for a in rng.sample(list(AGGS), 5):
                s.run('ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ')
                s.run('LOCK TABLE ev, %s, %s_final%s IN ACCESS SHARE MODE' % (a, a, ', t_update' if a[:4] == 'roll' else ''))
                if s.error: raise RuntimeError(s.error)
                before = replaced.get(a, 0)
                row = s.run("SELECT s.state::oid, s.status, (SELECT count(*) FROM millrace.mark m WHERE m.state = s.state),"
                    " (SELECT count(*) FROM millrace.mark m JOIN millrace.stream i USING (state) WHERE i.name IN ('t_update', 'roll')),"
                    " (SELECT count(*) FROM millrace.gone_range), (SELECT count(*) FROM pg_inherits WHERE inhparent = 'ev'::regclass) FROM millrace.stream s WHERE name = '%s'" % a)
                if s.error or not row: raise RuntimeError(s.error or 'no stream')
                oid, status, marks, rmarks, gone, parts = row[0].split('\t')
                what = '%s (%s, marks %s)' % (a, status, marks)
                exact = marks == '0' and gone == '0' and (not a.startswith('roll') or rmarks == '0') and status == 'running'
                if a in EXACT and exact:
                    d = s.run("SELECT string_agg(q.d::text, '; ') FROM (SELECT d FROM ((SELECT '+', %(c)s FROM %(a)s EXCEPT ALL SELECT '+', %(c)s FROM %(a)s_query) UNION ALL (SELECT '-', %(c)s FROM %(a)s_query EXCEPT ALL SELECT '-', %(c)s FROM %(a)s)) d LIMIT 6) q" % dict(c=COLS[a], a=a))
                    if s.error: raise RuntimeError(s.error)
                    if d != ['']:
                        problem('NAME <> NAME_query: %s: %s' % (what, d))
                    count('exact ' + a)
                elif a == 't_divert' and exact:
                    d = s.run("SELECT (SELECT sum(n) FROM %(a)s) + (SELECT count(*) FROM millrace.late_row WHERE stream = '%(a)s' AND reason = 'late') - (SELECT sum(n) FROM %(a)s_query)" % dict(a=a))
                    if not s.error and d not in (['0'], ['']):
                        problem('divert loses: %s %s' % (what, d))
                    count('divert ' + a)
                if a in FINAL:
                    f = s.run('SELECT %s FROM %s_final' % (COLS[a], a))
                    if s.error: raise RuntimeError(s.error)
                    rows = {}
                    for x in f: rows[x] = rows.get(x, 0) + 1
                    if oids.get(a) == oid:
                        lost = [x for x in seen[a] if x not in rows]
                        if lost:
                            problem('NAME_final changed: %s: lost %s; has now %s' % (what, lost[:3], [x for x in rows if x not in seen[a] and any(x.split('\t')[:2] == y.split('\t')[:2] or x.split('\t')[0] == y.split('\t')[0] for y in lost[:3])][:4]))
                        # a window shown before gets no other rows: tumble
                        if a[0] in 'th' and not a.startswith('roll'):
                            shown = seen_windows.get(a, set())
                            more = [x for x in rows if x not in seen[a] and x.split('\t')[0] in shown]
                            if more and not lost:
                                problem('NAME_final: window has more rows: %s: %s' % (what, more[:4]))
                    seen[a] = set(rows)
                    seen_windows[a] = {x.split('\t')[0] for x in rows}
                    dup = [x for x in rows if rows[x] > 1]
                    if dup: problem('NAME_final has duplicates: %s %s' % (what, dup[:3]))
                    count('final ' + a)
                if (not DML and a in ('t_update', 'h_update', 't_divert', 'plain', 'j_update', 'roll')) :
                    if oids.get(a) != oid:
                        state[a], cursor[a] = {}, 'NULL'
                    rows = s.run('SELECT cursor, %s FROM %s_changes(%s)' % (COLS[a], a, cursor.get(a, 'NULL') if cursor.get(a, 'NULL') == 'NULL' else "'%s'" % cursor[a]))
                    if s.error: raise RuntimeError(s.error)
                    keyn = {'plain': 3}.get(a, 1 if a[0] == 'h' else 2)
                    for x in rows:
                        c, rest = x.split('\t', 1)
                        state[a][tuple(rest.split('\t')[:keyn])] = rest
                        if cursor[a] == 'NULL' or int(c) > int(cursor[a]): cursor[a] = c
                    have = set(s.run("SELECT %s FROM %s" % (COLS[a], a)))
                    got = set(state[a].values())
                    diff = (have - got)
                    gonek = [k for k in state[a] if k not in {tuple(h.split('\t')[:keyn]) for h in have}]
                    lagging.setdefault(a, {})
                    # what differs must catch up in the following looks
                    now = {}
                    for h in diff:
                        k = tuple(h.split('\t')[:keyn]); now[k] = lagging[a].get(k, (h, 0)); now[k] = (h, now[k][1] + 1 if now[k][0] == h else 1)
                        if now[k][1] == 40: problem('NAME_changes lags for ever: %s: %s has %s' % (what, h, state[a].get(k)))
                    lagging[a] = now
                    if gonek and not DDL: problem('NAME_changes has groups that NAME lacks: %s %s' % (what, gonek[:3]))
                    count('changes ' + a)
                oids[a] = oid
            for name in ('big',):
                d = s.run("SELECT count(*), count(DISTINCT (window_start, key)) FROM millrace.alerts WHERE alert = '%s'" % name)
                if d and not s.error and len(set(d[0].split('\t'))) > 1: problem('alert reported twice: %s' % d)
            s.run('COMMIT')
        except RuntimeError as e:
            e = str(e)
            if '42P01' in e or DDL and '40P01' in e or '42883' in e or 'no stream' in e or 'XX000' in e and DDL and 'cache lookup' in e or 'could not open relation' in e:
                count('reader: replaced meanwhile')
            else:
                problem('reader: ' + e)
            s.run('ROLLBACK')
        except Lost:
            if not crashing.is_set() and not stopping.is_set(): problem('reader: connection lost')
            s.connect()
seen_windows, lagging = {}, {}

def watcher():
    s = Session('watcher')
    since = {}
    while not stopping.is_set():
        try:
            rows = s.run("SELECT a.pid, a.application_name, a.wait_event, left(a.query, 100), pg_blocking_pids(a.pid), (SELECT string_agg(b.application_name || ': ' || left(b.query, 100), ' / ') FROM pg_stat_activity b WHERE b.pid = ANY (pg_blocking_pids(a.pid))) FROM pg_stat_activity a WHERE wait_event_type = 'Lock' AND wait_event <> 'extend' AND application_name ~ '^w[0-9]'")
            for x in rows:
                f = x.split('\t')
                if len(f) < 6: continue
                by = f[5]
                # DDL and start/stop lock writers out by design; UPDATE and DELETE of the same rows too
                kind = 'wait %s by %s' % (f[2], ','.join(sorted({y.split(':')[0].rstrip('0123456789rc') or y[:10] for y in by.split(' / ')})))
                count(kind)
                if by and all(y.split(':')[0] in ('compact', 'refresh', 'maintain', 'replay') for y in by.split(' / ')) or (f[2] not in ('transactionid', 'tuple', 'relation') and f[3] != 'COMMIT;'):  # NOTIFY lets one commit at a time
                    problem('writer waits: ' + x)
                if f[2] == 'transactionid' and not ('UPDATE' in f[3] or 'DELETE' in f[3]):
                    problem('writer waits: ' + x)
            time.sleep(0.05)
        except Lost:
            s.connect()

def main():
    global t0
    setup()
    t0 = time.time()
    threads = [threading.Thread(target=writer, args=(i, i % 2 == 1), daemon=True) for i in range(5)]
    def th(*a): threads.append(threading.Thread(target=loop, args=a, daemon=True))
    th('compact', lambda r: "SELECT millrace.compact('%s')" % r.choice(list(AGGS)), (0, 0.3))
    th('compact2', lambda r: "SELECT millrace.compact('%s')" % r.choice(['t_update', 's_update', 'roll']), (0, 0.3))
    th('maintain', lambda r: "CALL millrace.maintain()", (0.2, 1))
    th('refresh', lambda r: "SELECT millrace.refresh('%s')" % r.choice(list(AGGS)), (0, 0.2))
    th('replay', lambda r: "SELECT millrace.replay_late('%s_divert')" % r.choice('thsj'), (0.2, 1))
    if DDL: th('ddl', ddl, (0.5, 2))
    threads += [threading.Thread(target=reader, daemon=True), threading.Thread(target=watcher, daemon=True)]
    for t in threads: t.start()
    if CRASH:
        time.sleep(seconds / 2)
        crashing.set()
        pid = int(open(cldir + '/data/postmaster.pid').readline())
        os.kill(pid, signal.SIGKILL)
        # Nobody may have reaped it, and its children notice at their own pace.
        for attempt in range(20):
            time.sleep(1)
            for left in [cldir + '/data/postmaster.pid'] + glob.glob(cldir + '/.s.PGSQL.*'):
                if os.path.exists(left):
                    os.unlink(left)
            if subprocess.run([os.environ['CLUSTER'], 'again', cldir], stderr=subprocess.DEVNULL).returncode == 0:
                break
        print('%6.1f crashed and started again' % (time.time() - t0), flush=True)
        time.sleep(2); crashing.clear()
        time.sleep(seconds / 2)
    else:
        time.sleep(seconds)
    stopping.set()
    for t in threads: t.join(30)
    s = Session('end')
    for n in s.run("SELECT relname FROM pg_class WHERE relname ~ '^ev_[0-9]+$' AND NOT relispartition"):
        p = int(n[3:])
        s.run("ALTER TABLE ev ATTACH PARTITION ev_%d FOR VALUES FROM ('%s') TO ('%s')" % (p, stamp(p * 1200), stamp((p + 1) * 1200)))
        if s.error: problem('attach: ' + s.error)
    for a in NOROLL:
        if s.run("SELECT status FROM millrace.stream WHERE name = '%s'" % a) != ['running']:
            s.run("SELECT millrace.start_stream('%s')" % a)
            if s.error: problem('start: ' + s.error)
    for a in AGGS:
        s.run("SELECT millrace.refresh('%s')" % a)
        if s.error: problem('last refresh: ' + s.error)
    for a in AGGS:
        d = s.run("SELECT * FROM millrace.verify('%s')" % a)
        if s.error: problem('verify: ' + s.error)
        bad = [x for x in d if a in EXACT or 'late rows dropped' not in x and 'joined' not in x]
        if bad: problem('verify %s: %d rows: %s' % (a, len(bad), bad[:4]))
        s.run("SELECT count(*) FROM millrace.mark m JOIN millrace.stream USING (state) WHERE name = '%s'" % a)
    print(s.run("SELECT count(*) FROM ev"), 'rows;', ' '.join('%s=%d' % x for x in sorted(stats.items())))
    print(len(problems), 'problems')
    sys.exit(1 if problems else 0)
main()
