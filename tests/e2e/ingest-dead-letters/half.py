#!/usr/bin/env python3
"""half.py PORT_FILE CUT_FILE HOST PORT: passes connections on until CUT_FILE is there; then cuts each of those towards the
client and keeps it towards the server, which so never learns that the client has gone.  Later ones are passed on whole."""
import os
import socket
import sys
import threading
import time

port_file, cut_file, host, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
kept = []


def copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass


def serve(client):
    server = socket.create_connection((host, port))
    kept.append(server)
    is_early = not os.path.exists(cut_file)
    for pair in ((client, server), (server, client)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
    while is_early and not os.path.exists(cut_file):
        time.sleep(0.01)
    if is_early:
        client.shutdown(socket.SHUT_RDWR)


listener = socket.create_server(("127.0.0.1", 0))
with open(port_file, "w") as file:
    file.write(str(listener.getsockname()[1]))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
