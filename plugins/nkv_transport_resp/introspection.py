"""Commands about commands, the node and its settings: as much as clients and tools ask for."""

import os
import platform
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .arguments import name_of, wrong_arity
from .connection import REDIS_VERSION
from .glob import Glob
from .replies import OK, Refusal, Simple

if TYPE_CHECKING:
    from .session import Call
    from .table import Spec


def time_(_: "Call", _words: list[bytes]) -> list[str]:
    """`TIME`: seconds, and microseconds."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return [str(seconds), str(nanoseconds // 1000)]


# --- COMMAND --------------------------------------------------------------------------------------


def command(call: "Call", words: list[bytes]) -> Any:
    """`COMMAND [COUNT | INFO [name ...] | DOCS [name ...] | LIST | GETKEYS command]`."""
    specs = call.session.shared.table.specs
    if len(words) == 1:
        return [_about(spec) for spec in specs.values()]
    names = [word.decode(errors="replace").lower() for word in words[2:]]
    match words[1].upper():
        case b"COUNT" if not names:
            return len(specs)
        case b"INFO":
            if not names:
                return [_about(spec) for spec in specs.values()]
            return [_about(specs[name]) if name in specs else None for name in names]
        case b"DOCS":
            return {name: _document(specs[name]) for name in names or specs if name in specs}
        case b"LIST" if not names:
            return list(specs)
        case b"GETKEYS" if names:
            return _keys_of(specs.get(names[0]), words[2:])
    raise Refusal(f"ERR unknown subcommand '{name_of(words[1])}'. Try COMMAND HELP.")


def _about(spec: "Spec") -> list[Any]:
    flags = [Simple(flag) for flag in spec.flags]
    categories = [Simple(f"@{spec.group}")]
    return [
        spec.name, spec.arity, flags, spec.first, spec.last, spec.step, categories, [], [], [],
    ]  # fmt: skip


def _document(spec: "Spec") -> dict[str, Any]:
    return {"summary": spec.summary, "since": "1.0.0", "group": spec.group}


def _keys_of(spec: "Spec | None", words: list[bytes]) -> list[str]:
    if spec is None:
        raise Refusal("ERR Invalid command specified")
    if len(words) != spec.arity if spec.arity > 0 else len(words) < -spec.arity:
        raise Refusal("ERR Invalid number of arguments specified for command")
    if not spec.first:
        raise Refusal("ERR The command has no key arguments")
    return spec.keys(words)


# --- INFO -----------------------------------------------------------------------------------------


def info(call: "Call", words: list[bytes]) -> str:
    """`INFO [section ...]`."""
    wanted = {word.decode(errors="replace").lower() for word in words[1:]}
    everything = not wanted or bool(wanted & {"all", "default", "everything"})
    sections = _sections(call)
    return "\r\n".join(
        f"# {name}\r\n" + "".join(f"{field}:{value}\r\n" for field, value in fields.items())
        for name, fields in sections.items()
        if everything or name.lower() in wanted
    )


def _sections(call: "Call") -> dict[str, dict[str, Any]]:
    shared = call.session.shared
    up = int(shared.loop.time() - shared.began)
    sessions = shared.sessions.values()
    return {
        "Server": {
            "redis_version": REDIS_VERSION,
            "nkv_version": version("nkv-core"),
            "redis_mode": "standalone",
            "os": f"{platform.system()} {platform.release()} {platform.machine()}",
            "arch_bits": 64 if sys.maxsize > 2**32 else 32,
            "process_id": os.getpid(),
            "run_id": f"{call.node.node_id:016x}".rjust(40, "0"),
            "tcp_port": call.session.local.rpartition(":")[2],
            "server_time_usec": time.time_ns() // 1000,
            "uptime_in_seconds": up,
            "uptime_in_days": up // 86_400,
        },
        "Clients": {
            "connected_clients": len(sessions),
            "maxclients": shared.settings.max_clients,
            "pubsub_clients": sum(bool(each.channels or each.patterns) for each in sessions),
            "blocked_clients": 0,
            "tracking_clients": shared.tracker.clients,
        },
        "Memory": {"used_memory": _resident(), "maxmemory": 0, "maxmemory_policy": "noeviction"},
        "Persistence": {"loading": 0, "async_loading": 0},
        "Stats": {
            "total_connections_received": shared.figures.connections,
            "rejected_connections": shared.figures.refused,
            "pubsub_channels": len(shared.channels.channels()),
            "pubsub_patterns": shared.channels.patterns,
            "tracking_total_keys": shared.tracker.keys,
            "client_output_buffer_limit_disconnections": shared.figures.cut_for_output,
        },
        "Replication": {"role": "master", "connected_slaves": 0},
        "Cluster": {"cluster_enabled": 0},
        "Keyspace": {},
    }


def _resident() -> int:
    """Bytes of memory that the process takes, all parts of the node together."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  # as short as can be
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


# --- CONFIG ---------------------------------------------------------------------------------------


def config(call: "Call", words: list[bytes]) -> Any:
    """`CONFIG GET name [name ...] | SET notify-keyspace-events flags | RESETSTAT`."""
    match words[1].upper():
        case b"GET":
            if len(words) < 3:
                raise wrong_arity("config|get")
            globs = [Glob(word.lower()) for word in words[2:]]
            settings = _settings(call)
            return {
                name: value
                for name, value in settings.items()
                if any(glob.matches(name.encode()) for glob in globs)
            }
        case b"SET":
            if len(words) < 4:
                raise wrong_arity("config|set")
            name = words[2].lower()
            if name != b"notify-keyspace-events" or len(words) > 4:
                raise Refusal(
                    "ERR Unknown option or number of arguments for CONFIG SET"
                    f" - '{name_of(words[2])}'"
                )
            return OK  # they are always told
        case b"RESETSTAT" if len(words) == 2:
            return OK
    raise Refusal(f"ERR unknown subcommand '{name_of(words[1])}'. Try CONFIG HELP.")


def _settings(call: "Call") -> dict[str, str]:
    settings = call.session.shared.settings
    durable = call.keyspace.capabilities.durable
    return {
        "appendfsync": "always" if durable else "no",
        "appendonly": "yes" if durable else "no",
        "bind": settings.host,
        "databases": "1",
        "maxclients": str(settings.max_clients),
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "notify-keyspace-events": "AKE",
        "port": str(settings.port),
        "proto-max-bulk-len": str(settings.max_bulk_bytes),
        "save": "",
        "timeout": str(int(settings.idle_timeout)),
    }
