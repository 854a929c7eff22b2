"""The core's own settings, by section. Those of a plugin are the plugin's (`nkv_settings`).

Durations are seconds, sizes are bytes. `docs/settings.md` is checked against these types.
"""

from typing import Annotated, Literal

import msgspec

from nkv_core.keys import MAX_KEY_BYTES

Text = Annotated[str, msgspec.Meta(min_length=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")]


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `node`."""

    name: str = ""  #: for people; the machine's name where empty
    data_dir: Text = "./nkv-data"
    backend: Literal["asyncio", "trio"] = "asyncio"
    stop_deadline: Seconds = 10.0  #: for everything together, at SIGTERM
    insecure: bool = False  #: allow listeners beyond loopback without tokens


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `log`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class KeyspaceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `keyspace`."""

    max_key_bytes: Count = MAX_KEY_BYTES
    max_value_bytes: Count = 1024 * 1024
    max_batch: Count = 10_000  #: operations and checks of one batch
    queue_bytes: Count = 64 * 1024 * 1024  #: of writes that wait for their commit
    write_deadline: Seconds = 30.0  #: how long a write may wait
    log_bytes: Count = 64 * 1024 * 1024  #: of the change log
    log_age: Seconds = 3600.0  #: of the change log
    tombstone_age: Seconds = 24 * 3600.0
    sweep_interval: Seconds = 0.5  #: between looks for what has expired
    bake_time: Seconds = 60.0  #: after a migration, in which it can be rolled back
    state_bytes: Count = 1024 * 1024  #: of the durable state of one plugin


class BusSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `bus`."""

    budget: Seconds = 0.25  #: how long a listener may take
    quarantine_after: Count = 5  #: offences against the budget
    end_queue: Count = 10_000  #: RequestEnd events that wait for async listeners


class AuthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `auth`."""

    tokens: str | None = None  #: file of hashed tokens


class PluginSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `plugins`."""

    load: tuple[str, ...] = ()  #: SPECs, on top of the default set
    disable: tuple[str, ...] = ()  #: names, taken from the default set
    folders: tuple[str, ...] = ()  #: where given, a path as SPEC must lie in one of these
    sha256: dict[str, Sha256] = {}  #: by plugin's name: what its source must have
    directory: str | None = None  #: whose plugins are loaded; in the data directory where None
    watch: bool = False  #: replace plugins given as paths when their files change
    max_changes_per_minute: Count = 120  #: loads, replacements and the like that are asked for
    setup_deadline: Seconds = 10.0
    probe_deadline: Seconds = 2.0
    drain_deadline: Seconds = 2.0  #: of handlers and notifiers
    transport_drain_deadline: Seconds = 10.0  #: of transports and meshes
    close_deadline: Seconds = 5.0
