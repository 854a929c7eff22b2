"""One parser under Atheris, until time or patience ends: python -m tests.fuzz.one NAME OPTION...

The options are libFuzzer's. Needs atheris, which sees which code an input comes by only where it
was there when that code was imported.
"""

import contextlib
import sys

import atheris

OURS = (
    "nkv_core",
    "nkv_mesh_full",
    "nkv_notifier_websocket",
    "nkv_transport_http",
    "nkv_transport_nats",
    "nkv_transport_resp",
    "nkv_transport_socket",
)

with atheris.instrument_imports(include=list(OURS)):
    from nkv_core.errors import NkvError

    from .parsers import TARGETS


def main(name, *options):
    target = TARGETS[name]

    def read(data):
        with contextlib.suppress(NkvError):
            target.read(data)

    # How libFuzzer starts itself again, by the shell, where one process is not enough.
    again = f"{sys.executable} -m tests.fuzz.one {name}"
    atheris.Setup([again, *options], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
