"""Plugins are replaced under clients that never retry, on kept and on new connections.

    python benchmarks/replace.py [HANDLER TRANSPORT]

how often each is replaced: 500 and 160 times unless told otherwise. First nothing else is asked of
the node than the plugin's own path, to see how soon an answer is the new one after the request on
the admin socket; then both kinds are replaced under load. Every error of a client counts.
"""

import http.client
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from node import started, stop

from nkv_core.admin import call_admin

HANDLER, TRANSPORT = 500, 160
QUIET = 100  # replacements without load
CLIENTS = (True, True, False, False)  # whether each keeps its connection
DEADLINE = 30.0
PLUGIN = """
from nkv_core import hookimpl

@hookimpl
def nkv_handlers(handlers):
    handlers.add("/turn", turn)

async def turn(request):
    return {turn}
"""


def ask(connection, path):
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise http.client.HTTPException(f"{answer.status} {body!r}")
    return body


def client(address, kept, over, results):
    """Asks until it is over; each failure is told, and nothing is tried again."""
    asked, failed, connection = 0, [], None
    while not over.is_set():
        if connection is None:
            connection = http.client.HTTPConnection(*address, timeout=DEADLINE)
        try:
            ask(connection, "/turn")
        except (OSError, http.client.HTTPException) as error:
            failed.append(repr(error))
            connection.close()
            connection = None
        asked += 1
        if not kept and connection is not None:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
    results.put((kept, asked, failed))


class Node:
    """A node of its own process, with a plugin that says which turn it is."""

    def __init__(self, folder):
        self.process, url, _ = started(
            folder / "data",
            "--storage",
            "memory",
            "--set",
            "plugins.max_changes_per_minute=1000000",
        )
        parts = urlsplit(url)
        self.address = parts.hostname, parts.port
        self._admin = folder / "data" / "admin.sock"
        self._plugin = folder / "turning.py"
        self.turn = 0
        self._write()
        self._call("load", spec=str(self._plugin))

    def _write(self):
        self._plugin.write_text(PLUGIN.format(turn=self.turn))

    def _call(self, verb, **params):
        call_admin(self._admin, f"plugins.{verb}", params, timeout=DEADLINE)

    def replace_handler(self):
        self.turn += 1
        self._write()
        self._call("replace", name="turning", spec=str(self._plugin))

    def replace_transport(self):
        self._call("replace", name="nkv_transport_http", spec="nkv_transport_http")


def first_new_answers(node, times):
    """Seconds from each request on the admin socket to the first answer of the new generation."""
    took = []
    connection = http.client.HTTPConnection(*node.address, timeout=DEADLINE)
    for _ in range(times):
        wanted, end = b"%d" % (node.turn + 1), time.monotonic() + DEADLINE
        began = time.perf_counter()
        replacing = threading.Thread(target=node.replace_handler)
        replacing.start()
        while ask(connection, "/turn") != wanted:
            if time.monotonic() > end:
                raise SystemExit("the new generation never answered")
        took.append(time.perf_counter() - began)
        replacing.join(DEADLINE)
    connection.close()
    return took


def under_load(node, what, replace, times):
    context = multiprocessing.get_context("spawn")
    over, results = context.Event(), context.Queue()
    clients = [
        context.Process(target=client, args=(node.address, kept, over, results)) for kept in CLIENTS
    ]
    for each in clients:
        each.start()
    time.sleep(1)
    took = []
    for _ in range(times):
        began = time.perf_counter()
        replace()
        took.append(time.perf_counter() - began)
    over.set()
    asked, failed = {True: 0, False: 0}, []
    for _ in clients:
        kept, count, errors = results.get(timeout=DEADLINE)
        asked[kept] += count
        failed += errors
    for each in clients:
        each.join(DEADLINE)
    print(
        f"{times} replacements of {what}: {len(failed)} errors (limit 0) in {asked[True]:,}"
        f" requests on kept and {asked[False]:,} on new connections;"
        f" one takes {statistics.median(took) * 1000:.0f} ms (median)",
        flush=True,
    )
    for error in failed[:5]:
        print(f"    {error}")


def main(handler, transport):
    with tempfile.TemporaryDirectory() as name:
        node = Node(Path(name))
        try:
            took = first_new_answers(node, QUIET)
            print(
                f"first new answer: {statistics.median(took) * 1000:.1f} ms (median),"
                f" {max(took) * 1000:.1f} ms (worst of {QUIET}) after the request on the admin"
                " socket (limit 50 ms)",
                flush=True,
            )
            under_load(node, "a handler plugin", node.replace_handler, handler)
            under_load(node, "the HTTP transport", node.replace_transport, transport)
        finally:
            stop(node.process)


if __name__ == "__main__":
    given = [int(number) for number in sys.argv[1:]]
    main(*(given or (HANDLER, TRANSPORT)))
