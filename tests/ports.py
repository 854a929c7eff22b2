"""Ports that tests must know before anything listens there."""

import contextlib
import itertools
import os
import socket

# Below what the kernel gives to outgoing connections and to port 0, so that nothing takes a port
# between its choice and its use; each process begins at a place of its own.
_FIRST, _END = 15_000, 32_000
_next = itertools.count(os.getpid() * 61)


def free_port():
    """A port of 127.0.0.1 that nobody has, each time another."""
    return free_ports(1)


def free_ports(count):
    """The first of so many such ports in a row."""
    for _ in range(_END - _FIRST):
        first, *more = (_FIRST + next(_next) % (_END - _FIRST) for _ in range(count))
        with contextlib.suppress(OSError), contextlib.ExitStack() as tried:
            for port in (first, *more):
                tried.enter_context(socket.create_server(("127.0.0.1", port)))
            if not more or more[-1] > first:  # else they are none in a row: they began anew
                return first
    raise AssertionError("no ports are free")
