#!/usr/bin/env python3
"""proxy.py PORT_FILE HOST PORT after|before: passes one server's connections on, and cuts the first COMMIT of a batch.

after: COMMIT reaches the server, its answer does not reach the client.  before: COMMIT does not reach the server.
A batch is what has sent COPY data; the port it listens on is written to PORT_FILE.
"""
import os
import socket
import sys
import threading

port_file, host, port, when = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
has_cut = False


def close(*ends):
    for end in ends:
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        end.close()


def answers(server, client, cut):
    try:
        while data := server.recv(65536):
            if cut.is_set():
                break  # the answer to COMMIT: the server has done it
            client.sendall(data)
    except OSError:
        pass
    close(server, client)


def requests(client):
    global has_cut
    server = socket.create_connection((host, port))
    cut = threading.Event()
    threading.Thread(target=answers, args=(server, client, cut), daemon=True).start()
    has_copied = False
    try:
        while data := client.recv(65536):
            has_copied = has_copied or b"FROM STDIN" in data
            if has_copied and COMMIT in data and not has_cut:
                has_cut = True
                if when == "before":
                    break
                cut.set()
            server.sendall(data)
    except OSError:
        pass
    if not cut.is_set():
        close(server, client)


listener = socket.create_server(("127.0.0.1", 0))
with open(port_file + ".tmp", "w") as file:
    file.write(str(listener.getsockname()[1]))
os.rename(port_file + ".tmp", port_file)
while True:
    threading.Thread(target=requests, args=(listener.accept()[0],), daemon=True).start()
