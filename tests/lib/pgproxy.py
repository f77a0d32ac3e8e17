#!/usr/bin/env python3
"""pgproxy.py PORT_FILE HOST PORT POINT: passes a PostgreSQL server's connections on, and cuts the first that reaches POINT.

It reads the protocol in both directions and knows these points of a transaction that stores a batch:
  connect        the startup packet has come, the server has not seen it
  partition      a statement that makes partitions has come, the server has not seen it
  before-copy    COPY has come, the server has not seen it
  mid-copy       half of a piece of COPY data has reached the server
  before-offsets all rows are copied; the statement that moves the positions has come, the server has not seen it
  before-commit  COMMIT has come, the server has not seen it
  commit-sent    COMMIT has reached the server, which may or may not have done it
  commit-lost    the server has committed; its answer has come, the client has not seen it
  after-commit   the client has the answer; nothing it sends afterwards has reached the server
  settle         a statement that asks for a position has come, the server has not seen it

It understands no TLS.  The port it listens on is written to PORT_FILE.  tests/e2e/ingest-kill uses the classes instead.
"""
import os
import re
import socket
import struct
import sys
import threading

POINTS = ["connect", "partition", "before-copy", "mid-copy", "before-offsets", "before-commit", "commit-sent",
          "commit-lost", "after-commit", "settle"]
COPY = re.compile(rb"(^|;)\s*COPY\s[^;]*FROM\s+STDIN", re.I)
COMMIT = re.compile(rb"(^|;)\s*COMMIT\b", re.I)
PARTITION = re.compile(rb"millrace\.ensure_partitions\(")
OFFSETS = re.compile(rb"UPDATE\s+millrace\.ingest_offsets", re.I)
SETTLE = re.compile(rb"SELECT.*millrace\.ingest_offsets.*FOR\s+UPDATE", re.I | re.S)


class Stop:
    """Somebody waits for one connection at one point: `hit` when it is there; `end(True)` lets it go on, `end(False)` cuts it."""

    def __init__(self, point, number=None):
        self.point, self.number, self.connection = point, number, None  # number: of the port; None: any
        self.hit, self.decided = threading.Event(), threading.Event()
        self.goes_on = False

    def end(self, goes_on):
        self.goes_on = goes_on
        self.decided.set()


class Cut(Exception):
    pass


class Connection:
    def __init__(self, proxy, client, number):
        self.proxy, self.client, self.number = proxy, client, number  # number of the port it came to
        self.server = None
        self.backend = 0          # process id, from BackendKeyData
        self.has_copied = False   # in this transaction
        self.commit = None        # a Stop that waits for the answer to COMMIT
        self.resets = False       # it ends with RST
        self.held = None          # a Stop that holds everything in both directions
        self.is_raw = True        # packets without a type byte: until the startup packet
        self.one_byte = 0         # answers of one byte that the server owes

    # ---- ends ----

    def cut(self):
        for end in (self.client, self.server):
            if end is None:
                continue
            try:
                if self.resets:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()

    def wait(self, stop):
        stop.connection = self
        stop.hit.set()
        stop.decided.wait()
        if not stop.goes_on:
            raise Cut

    # ---- client to server ----

    def statement(self, sql, message):
        """One SQL statement has come; decides what is passed on, and when."""
        proxy = self.proxy
        if PARTITION.search(sql):
            proxy.reach(self, "partition")
        elif COPY.search(sql):
            proxy.reach(self, "before-copy")
            self.has_copied = True
        elif OFFSETS.search(sql) and self.has_copied:
            proxy.reach(self, "before-offsets")
        elif SETTLE.search(sql):
            proxy.reach(self, "settle")
        elif COMMIT.search(sql) and self.has_copied:
            self.has_copied = False
            proxy.reach(self, "before-commit")
            stop = proxy.claim(self, "commit-sent")
            if stop is not None:
                self.held = stop
                self.server.sendall(message)
                self.wait(stop)
                return
            self.commit = proxy.claim(self, "commit-lost") or proxy.claim(self, "after-commit")
        self.server.sendall(message)

    def from_client(self):
        data = b""
        while chunk := self.client.recv(1 << 18):
            if self.held is not None:
                self.held.decided.wait()
            data += chunk
            at = 0
            while True:
                size = 4 if self.is_raw else 5
                if len(data) - at < size:
                    break
                length = struct.unpack_from("!i", data, at + size - 4)[0] + size - 4
                if len(data) - at < length:
                    break
                message = data[at:at + length]
                at += length
                if self.is_raw:
                    self.startup(message)
                    continue
                kind = message[:1]
                if kind == b"Q":
                    self.statement(message[5:], message)
                elif kind == b"P":
                    self.statement(message[message.index(b"\0", 5) + 1:], message)
                elif kind == b"d" and (stop := self.proxy.claim(self, "mid-copy")) is not None:
                    self.server.sendall(message[:length // 2])
                    self.wait(stop)
                    self.server.sendall(message[length // 2:])
                else:
                    self.server.sendall(message)
            data = data[at:]

    def startup(self, message):
        code = struct.unpack_from("!i", message, 4)[0]
        if code >> 16 == 3:
            self.is_raw = False
            self.proxy.reach(self, "connect")
        elif code in (80877103, 80877104):  # asks for TLS or GSS encryption
            self.one_byte += 1
        self.server.sendall(message)

    # ---- server to client ----

    def from_server(self):
        data = b""
        while chunk := self.server.recv(1 << 18):
            data += chunk
            at = 0
            while True:
                if self.one_byte and len(data) > at:
                    self.one_byte -= 1
                    self.client.sendall(data[at:at + 1])
                    at += 1
                    continue
                if len(data) - at < 5:
                    break
                length = struct.unpack_from("!i", data, at + 1)[0] + 1
                if len(data) - at < length:
                    break
                message = data[at:at + length]
                at += length
                self.answer(message)
            data = data[at:]

    def answer(self, message):
        kind, stop = message[:1], self.commit
        if self.held is not None:
            self.held.decided.wait()
            if not self.held.goes_on:
                raise Cut
        if kind == b"K":
            self.backend = struct.unpack_from("!i", message, 5)[0]
        elif stop is not None and kind == b"E":
            self.commit = None
            self.proxy.unclaim(stop)
        elif stop is not None and kind == b"C" and message[5:11] == b"COMMIT" and stop.point == "commit-lost":
            self.commit = None
            self.wait(stop)
        elif stop is not None and kind == b"Z" and stop.point == "after-commit":
            self.commit = None
            self.held = stop
            self.client.sendall(message)
            self.wait(stop)
            return
        self.client.sendall(message)

    # ---- life ----

    def pump(self, direction):
        try:
            direction()
        except (OSError, Cut):
            pass
        if self.commit is not None:
            self.proxy.unclaim(self.commit)
        self.cut()

    def run(self):
        try:
            self.server = socket.create_connection((self.proxy.host, self.proxy.server_port))
        except OSError:
            self.cut()
            return
        for end in (self.client, self.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self.pump, args=(self.from_server,), daemon=True).start()
        self.pump(self.from_client)


class Proxy:
    """Listens on n_ports ports of 127.0.0.1.  The first connection that reaches the point of the armed Stop takes it."""

    def __init__(self, host, port, n_ports=1):
        self.host, self.server_port = host, port
        self.lock = threading.Lock()
        self.armed = None
        listeners = [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(n_ports)]
        self.ports = [listener.getsockname()[1] for listener in listeners]
        for number, listener in enumerate(listeners):
            threading.Thread(target=self.listen, args=(listener, number), daemon=True).start()

    def listen(self, listener, number):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=Connection(self, client, number).run, daemon=True).start()

    def arm(self, stop):
        with self.lock:
            self.armed = stop

    def claim(self, connection, point):
        with self.lock:
            stop = self.armed
            if stop is None or stop.point != point or stop.number not in (None, connection.number):
                return None
            self.armed = None
            return stop

    def unclaim(self, stop):
        """The connection ended, or COMMIT failed, before the point was reached."""
        with self.lock:
            if not stop.hit.is_set() and self.armed is None:
                self.armed = stop

    def reach(self, connection, point):
        stop = self.claim(connection, point)
        if stop is not None:
            connection.wait(stop)


def main():
    port_file, host, port, point = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    if point not in POINTS:
        sys.exit(f"pgproxy.py: no point {point}; there are {', '.join(POINTS)}")
    proxy, stop = Proxy(host, port), Stop(point)
    proxy.arm(stop)
    with open(port_file + ".tmp", "w", encoding="ascii") as file:
        file.write(str(proxy.ports[0]))
    os.rename(port_file + ".tmp", port_file)
    stop.hit.wait()
    stop.end(False)
    threading.Event().wait()


if __name__ == "__main__":
    main()
