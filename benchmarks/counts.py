"""Instructions of the hot paths, counted by valgrind: the same on a busy machine as on an idle one.

    python benchmarks/counts.py            compare with the record; exit 1 where a path has grown
    python benchmarks/counts.py record     write the record for this interpreter and these libraries

Each path is run N and 2 N times, in processes of their own; the difference, over N, is what one
takes. The hash seed is fixed. The record, `counts.json`, is by interpreter and versions of
libraries: where there is none for what runs here, there is nothing to compare with, and that is
said. A change that is meant to cost more comes with a new record.
"""

import asyncio
import importlib.metadata
import json
import logging
import platform
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

RECORD = Path(__file__).with_name("counts.json")
LIBRARIES = ("anyio", "msgspec", "pluggy", "hiredis")
RUNS = 300
#: How much a path may grow before it counts as slower.
GROWTH = 1.10
DEADLINE = 300  # seconds for one process


async def dispatcher_and_keyspace():
    """A dispatcher over a keyspace in memory, with the handlers of the HTTP transport."""
    from nkv_core.contracts.owner import Owner
    from nkv_core.contracts.settings import BusSettings, KeyspaceSettings
    from nkv_core.dispatch import Dispatcher, Registration
    from nkv_core.handlers import HandlerCollector
    from nkv_core.keyspace.local import LocalKeyspace
    from nkv_storage_memory.storage import MemoryStorage
    from nkv_transport_http import nkv_handlers
    from nkv_transport_http.nkvd import Nkvd
    from nkv_transport_http.settings import HttpSettings

    dispatcher = Dispatcher(settings=BusSettings())
    keyspace = LocalKeyspace(MemoryStorage(), KeyspaceSettings(), node_id=1)
    await keyspace.open()
    dispatcher.node, dispatcher.keyspace = None, keyspace
    owner = Owner("nkv_transport_http")
    handlers = HandlerCollector(owner, lambda _: None)
    nkv_handlers(handlers)
    Nkvd(HttpSettings(), "0", lambda: 0).register(handlers)
    dispatcher.switch(enter=Registration(owner, handlers.routes))
    return dispatcher, keyspace


def take(answered, *answer):
    """What dispatch calls with the outcome."""
    answered.set_result(answer)


async def http(data, runs):
    """From the bytes of a simple request to those of its answer, over the fast lane."""
    import anyio

    from nkv_transport_http.app import App
    from nkv_transport_http.browsers import Hosts
    from nkv_transport_http.settings import HttpSettings
    from nkv_transport_http.simple import Simple

    dispatcher, keyspace = await dispatcher_and_keyspace()
    settings = HttpSettings()
    simple = Simple(App(dispatcher.dispatch, settings, Hosts(("127.0.0.1",)), logging.getLogger()))
    async with anyio.create_task_group() as tasks:
        await tasks.start(keyspace.run)
        await keyspace.put("a", b"x" * 100)
        for _ in range(runs):
            request, _end = simple.request(data, 0, "127.0.0.1:1", "127.0.0.1")
            answered = asyncio.get_running_loop().create_future()
            rest = dispatcher.dispatch_now(request, partial(take, answered))
            if rest is not None:
                await rest
            outcome, error, route = await answered
            response = simple.response(request, outcome, error, route)
            assert response.startswith(b"HTTP/1.1 200 "), response
        tasks.cancel_scope.cancel()


async def get(runs):
    await http(b"GET /v1/kv/a HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", runs)


async def put(runs):
    await http(b"GET /set?k=a&v=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", runs)


class Sink(asyncio.Transport):
    """Keeps what a client was sent last."""

    sent = b""

    def set_write_buffer_limits(self, high=None, low=None):
        """It never has to wait."""

    def write(self, data):
        self.sent = data


async def resp(command, reply, runs):
    """From the bytes of a command to those of its reply."""
    from nkv_core.contracts.owner import Owner
    from nkv_core.dispatch import Registration
    from nkv_core.handlers import HandlerCollector
    from nkv_transport_resp.commands import register
    from nkv_transport_resp.server import Shared
    from nkv_transport_resp.session import Session
    from nkv_transport_resp.settings import RespSettings

    dispatcher, keyspace = await dispatcher_and_keyspace()
    owner = Owner("nkv_transport_resp")
    context = SimpleNamespace(
        dispatch_now=dispatcher.dispatch_now, owner=owner, log=logging.getLogger(), node=None
    )
    shared = Shared(context, RespSettings())
    handlers = HandlerCollector(owner, lambda _: None)
    register(handlers, shared.table)
    dispatcher.switch(enter=Registration(owner, handlers.routes))
    await keyspace.put("a", b"abc")
    session, sink = Session(shared), Sink()
    session.connection_made(sink)
    for _ in range(runs):
        session.data_received(command)
        await asyncio.sleep(0)
        assert sink.sent == reply


async def resp_get(runs):
    await resp(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", b"$3\r\nabc\r\n", runs)


async def resp_set(runs):
    await resp(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$3\r\nabc\r\n", b"+OK\r\n", runs)


async def parse_commands(runs):
    from nkv_transport_resp.parser import Parser

    parser = Parser(1000, 1_000_000, 1_000_000)
    for _ in range(runs):
        commands, hostile = parser.feed(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$3\r\nabc\r\n")
        assert hostile is None
        assert len(commands) == 1


PATHS = {
    "http get, from bytes to bytes": get,
    "nkvd set, from bytes to bytes": put,
    "resp, a command parsed": parse_commands,
    "resp get, from bytes to bytes": resp_get,
    "resp set, from bytes to bytes": resp_set,
}


def versions():
    """What a count depends on besides the code."""
    found = [f"{platform.python_implementation()} {platform.python_version()}", platform.machine()]
    return ", ".join(found + [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES])


def instructions(name, runs):
    """Of a whole process that takes a path so many times."""
    done = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable),
            *(__file__, "run", name, str(runs)),
        ],
        capture_output=True,
        text=True,
        env={
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": ":".join(sys.path),
        },
        timeout=DEADLINE,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"{name}: {done.stdout}{done.stderr}")
    return int(found[1])


def counted():
    """Instructions for one of each path."""
    return {
        name: (instructions(name, 2 * RUNS) - instructions(name, RUNS)) // RUNS for name in PATHS
    }


def main():
    if sys.argv[1:2] == ["run"]:
        asyncio.run(PATHS[sys.argv[2]](int(sys.argv[3])))
        return
    if not shutil.which("valgrind"):
        print("left out: it needs valgrind")
        return
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    found, known = counted(), record.get(versions(), {})
    print(f"instructions for one, {versions()}")
    grown = []
    for name, count in found.items():
        before = known.get(name)
        ratio = "" if before is None else f"{count / before:6.3f} x the record"
        print(f"{name:<40}{count:>10,}  {ratio}")
        if before is not None and count > before * GROWTH:
            grown.append(name)
    if sys.argv[1:2] == ["record"]:
        record[versions()] = found
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    elif not known:
        print("there is no record for these versions: python benchmarks/counts.py record")
    if grown and sys.argv[1:2] != ["record"]:
        raise SystemExit(f"grown by more than {GROWTH - 1:.0%}: {', '.join(grown)}")


if __name__ == "__main__":
    main()
