"""What the life of a request costs above calling the handler and the reply by themselves.

    python benchmarks/lifecycle.py [--backend trio] [--json]

All variants take turns in short rounds, and of each the quickest round counts, so that a busy
machine disturbs them alike. The limits are those that the project has set itself.
"""

import argparse
import json
import platform
import time

import anyio

from nkv_core.bus import Listener
from nkv_core.contracts.handlers import Request, Route
from nkv_core.contracts.identity import Identity, Right
from nkv_core.contracts.owner import Owner
from nkv_core.contracts.settings import BusSettings
from nkv_core.dispatch import Dispatcher, Registration
from nkv_core.errors import NotFound
from nkv_core.events import RequestComplete, RequestEnd, RequestStart

REQUESTS = 1000
ROUNDS = 40
PATH = "/v1/status"
LIFE = (RequestStart, RequestComplete, RequestEnd)

OWNER = Owner("nkv_benchmark")


async def handler(request):
    return None


async def missing(request):
    raise NotFound


async def reply(outcome, error, route):
    return None


def plain(event):
    return None


async def listener(event):
    return None


class OneToken:
    """Knows one token, without hashing: what is measured is dispatch."""

    identity = Identity("benchmark", (Right("", write=True),))

    def identify(self, credential):
        return self.identity


def made(events=(), call=plain, count=1, auth=None, target=handler, **route):
    """A dispatcher with one route."""
    dispatcher = Dispatcher(settings=BusSettings(), auth=auth)
    dispatcher.node = dispatcher.keyspace = None
    route = {"path": PATH, "timeout": None, **route}
    listeners = [Listener(event, call, OWNER) for event in events for _ in range(count)]
    routes = (Route(listener="http", method="GET", target=target, owner=OWNER, **route),)
    dispatcher.switch(enter=Registration(OWNER, routes, tuple(listeners)))
    return dispatcher


async def bare(requests):
    for request in requests:
        await handler(request)
        await reply(None, None, None)


def dispatched(dispatcher):
    async def variant(requests):
        for request in requests:
            await dispatcher.dispatch(request, reply)

    return variant


#: What is measured, and the limit in microseconds above the bare call, where there is one.
VARIANTS = {
    "bare handler and reply": (bare, None),
    "no listener": (dispatched(made()), 2.0),
    "one plain listener on each event": (dispatched(made(LIFE)), 6.0),
    "three plain listeners on each event": (dispatched(made(LIFE, count=3)), None),
    "one plain listener of RequestEnd alone": (dispatched(made([RequestEnd])), None),
    "one async listener on start and complete": (dispatched(made(LIFE[:2], listener)), None),
    "path with a parameter": (dispatched(made(path="/v1/{key:path}")), None),
    "handler with a deadline": (dispatched(made(timeout=60.0)), None),
    "handler that raises not_found": (dispatched(made(target=missing)), None),
    "with a token": (dispatched(made(auth=OneToken())), None),
}


async def measure():
    """The quickest round of each, in microseconds for one request."""
    requests = [Request(transport="http", method="GET", path=PATH) for _ in range(REQUESTS)]
    best = dict.fromkeys(VARIANTS, float("inf"))
    for _ in range(ROUNDS):
        for name, (variant, _) in VARIANTS.items():
            began = time.perf_counter()
            await variant(requests)
            took = (time.perf_counter() - began) / REQUESTS * 1e6
            best[name] = min(best[name], took)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    asked = parser.parse_args()
    best = anyio.run(measure, backend=asked.backend)
    base, *_ = best.values()
    figures = {
        name: {
            "microseconds": round(took, 3),
            "above_bare": round(took - base, 3),
            "ratio_to_bare": round(took / base, 1),
            "limit": VARIANTS[name][1],
        }
        for name, took in best.items()
    }
    if asked.json:
        print(json.dumps({"python": platform.python_version(), "figures": figures}, indent=2))
        return
    print(f"Python {platform.python_version()}, {asked.backend}; microseconds for one request")
    for name, figure in figures.items():
        limit = "" if figure["limit"] is None else f"  (at most {figure['limit']:g})"
        print(
            f"{name:42} {figure['microseconds']:7.2f}   "
            f"+{figure['above_bare']:6.2f}   x{figure['ratio_to_bare']:6.1f}{limit}"
        )


if __name__ == "__main__":
    main()
