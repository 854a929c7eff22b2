"""Ports that tests must know before anything listens there."""

import itertools
import os
import socket

# Below what the kernel gives to outgoing connections and to port 0, so that nothing takes a port
# between its choice and its use; each process begins at a place of its own.
_FIRST, _END = 15_000, 32_000
_next = itertools.count(os.getpid() * 61)


def free_port():
    """A port of 127.0.0.1 that nobody has, each time another."""
    for _ in range(_END - _FIRST):
        port = _FIRST + next(_next) % (_END - _FIRST)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError("no port is free")
