"""Table: every command, how many words it takes, where its keys are, and what carries it out."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec

from . import connection, introspection, keys, listing, messages, strings, transactions
from .arguments import key_of

#: `read` and `write` commands are functions of a view, `session` ones of the call; those that are
#: `alone` are too, but may have to be awaited, and are no part of a transaction.
Kind = Literal["read", "write", "session", "alone"]


class Spec(msgspec.Struct, frozen=True):
    """One command."""

    name: str
    arity: int  #: words, the name included; where negative, at least so many
    kind: Kind
    run: Callable[..., Any]
    group: str
    summary: str
    first: int = 0  #: word of the first key; 0 where there are none
    last: int = 0  #: of the last one, from the end where negative
    step: int = 0
    event: str = ""  #: what it is called in events, where that is not its name
    at_once: bool = False  #: carried out in a transaction that is being put together
    subscribed: bool = False  #: possible for a client of RESP2 that has subscribed
    public: bool = False  #: possible without a token
    check: Callable[[list[bytes]], None] | None = None  #: raises what refuses a subcommand

    def keys(self, words: Sequence[bytes]) -> list[str]:
        """The keys among the words. Raises `InvalidKey`."""
        if not self.first:
            return []
        end = len(words) + self.last if self.last < 0 else self.last
        return [key_of(word) for word in words[self.first : end + 1 : self.step]]

    @property
    def orderly(self) -> bool:
        """Whether it finds its own place among writes that wait."""
        return self.kind in ("read", "write")

    @property
    def flags(self) -> list[str]:
        """The flags that `COMMAND` tells."""
        flags = {"read": ["readonly"], "write": ["write"]}.get(self.kind, ["noscript"])
        return [*flags, "no_auth"] if self.public else flags


def _on_key(
    name: str, arity: int, kind: Kind, run: Callable[..., Any], *about: str, **more: Any
) -> Spec:
    group, summary = about
    fields: dict[str, Any] = {"first": 1, "last": 1, "step": 1, **more}
    return Spec(name, arity, kind, run, group, summary, **fields)


def _specs() -> list[Spec]:
    string, generic = "string", "generic"
    return [
        _on_key("get", 2, "read", strings.get, string, "The value of a key"),
        _on_key("set", -3, "write", strings.set_, string, "Set a value", event="put"),
        _on_key("setnx", 3, "write", strings.setnx, string, "Set a value where there is none"),
        _on_key("setex", 4, "write", strings.setex, string, "Set a value for some seconds"),
        _on_key("psetex", 4, "write", strings.psetex, string, "The same in milliseconds"),
        _on_key("getset", 3, "write", strings.getset, string, "Set a value, return the old one"),
        _on_key("getdel", 2, "write", strings.getdel, string, "Return a value and delete it"),
        _on_key("getex", -2, "write", strings.getex, string, "Return a value, set its expiry"),
        _on_key("mget", -2, "read", strings.mget, string, "The values of several keys", last=-1),
        _on_key("mset", -3, "write", strings.mset, string, "Set several values", last=-1, step=2),
        _on_key(
            "msetnx",
            -3,
            "write",
            strings.msetnx,
            string,
            "Set several values where none of them is",
            last=-1,
            step=2,
        ),
        _on_key("incr", 2, "write", strings.incr, string, "Add one to a number"),
        _on_key("decr", 2, "write", strings.decr, string, "Take one from a number"),
        _on_key("incrby", 3, "write", strings.incrby, string, "Add to a number"),
        _on_key("decrby", 3, "write", strings.decrby, string, "Take from a number"),
        _on_key("append", 3, "write", strings.append, string, "Append to a value"),
        _on_key("strlen", 2, "read", strings.strlen, string, "The length of a value"),
        _on_key("getrange", 4, "read", strings.getrange, string, "A part of a value"),
        _on_key("substr", 4, "read", strings.getrange, string, "A part of a value"),
        _on_key("setrange", 4, "write", strings.setrange, string, "Overwrite a part of a value"),
        _on_key("del", -2, "write", keys.delete, generic, "Delete keys", last=-1, event="delete"),
        _on_key(
            "unlink", -2, "write", keys.unlink, generic, "Delete keys", last=-1, event="delete"
        ),
        _on_key("exists", -2, "read", keys.exists, generic, "How many keys are there", last=-1),
        _on_key("touch", -2, "read", keys.exists, generic, "How many keys are there", last=-1),
        _on_key("type", 2, "read", keys.type_, generic, "`string`, or `none`"),
        _on_key("ttl", 2, "read", keys.ttl, generic, "Seconds until a key expires"),
        _on_key("pttl", 2, "read", keys.pttl, generic, "The same in milliseconds"),
        _on_key("expiretime", 2, "read", keys.expiretime, generic, "When a key expires"),
        _on_key("pexpiretime", 2, "read", keys.pexpiretime, generic, "The same in milliseconds"),
        _on_key("expire", -3, "write", keys.expire, generic, "Have a key expire after seconds"),
        _on_key("pexpire", -3, "write", keys.pexpire, generic, "The same in milliseconds"),
        _on_key("expireat", -3, "write", keys.expireat, generic, "Have a key expire at a time"),
        _on_key("pexpireat", -3, "write", keys.pexpireat, generic, "The same in milliseconds"),
        _on_key("persist", 2, "write", keys.persist, generic, "Have a key never expire"),
        _on_key("rename", 3, "write", keys.rename, generic, "Give a record another key", last=2),
        _on_key("renamenx", 3, "write", keys.renamenx, generic, "Where that is not taken", last=2),
        Spec("keys", 2, "alone", listing.keys, generic, "All keys that match"),
        Spec("scan", -2, "alone", listing.scan, generic, "Keys, some at a time"),
        Spec("randomkey", 1, "alone", listing.randomkey, generic, "Any key"),
        Spec("dbsize", 1, "alone", listing.dbsize, "server", "How many keys there are"),
        Spec("flushdb", -1, "write", keys.flushdb, "server", "Delete everything", event="clear"),
        Spec("flushall", -1, "write", keys.flushdb, "server", "Delete everything", event="clear"),
        *_of_transactions(),
        *_of_messages(),
        *_of_connections(),
    ]


def _of_transactions() -> list[Spec]:
    group = "transactions"
    return [
        Spec("multi", 1, "session", transactions.multi, group, "Begin a transaction", at_once=True),
        Spec("exec", 1, "alone", transactions.execute, group, "Carry it out", at_once=True),
        Spec("discard", 1, "session", transactions.discard, group, "Drop it", at_once=True),
        _on_key(
            "watch",
            -2,
            "alone",
            transactions.watch,
            group,
            "Carry it out only if nothing changed",
            last=-1,
            at_once=True,
        ),
        Spec("unwatch", 1, "session", transactions.unwatch, group, "Forget what was watched"),
    ]


def _of_messages() -> list[Spec]:
    group = "pubsub"
    return [
        Spec(
            "subscribe", -2, "alone", messages.subscribe, group, "Be sent messages", subscribed=True
        ),
        Spec("unsubscribe", -1, "alone", messages.unsubscribe, group, "No more", subscribed=True),
        Spec("psubscribe", -2, "alone", messages.psubscribe, group, "By patterns", subscribed=True),
        Spec("punsubscribe", -1, "alone", messages.punsubscribe, group, "No more", subscribed=True),
        Spec("publish", 3, "session", messages.publish, group, "Send a message"),
        Spec("pubsub", -2, "session", messages.pubsub, group, "Who subscribes to what"),
    ]


def _of_connections() -> list[Spec]:
    group = "connection"
    return [
        Spec("ping", -1, "session", connection.ping, group, "Pong", subscribed=True),
        Spec("echo", 2, "session", connection.echo, group, "The same again"),
        Spec("auth", -2, "alone", connection.auth, group, "Give a token"),
        Spec("hello", -1, "alone", connection.hello, group, "Choose a protocol"),
        Spec("select", 2, "session", connection.select, group, "Database 0"),
        Spec(
            "quit",
            -1,
            "session",
            connection.quit_,
            group,
            "Say goodbye",
            at_once=True,
            subscribed=True,
            public=True,
        ),
        Spec(
            "reset",
            1,
            "session",
            connection.reset,
            group,
            "Begin anew",
            at_once=True,
            subscribed=True,
            public=True,
        ),
        Spec(
            "client",
            -2,
            "session",
            connection.client,
            group,
            "About clients",
            check=connection.check_client,
        ),
        Spec("command", -1, "session", introspection.command, "server", "About commands"),
        Spec("info", -1, "session", introspection.info, "server", "About the node"),
        Spec("config", -2, "session", introspection.config, "server", "Some settings"),
        Spec("time", 1, "session", introspection.time_, "server", "What time it is"),
    ]


class Table:
    """All commands by name."""

    def __init__(self) -> None:
        self.specs: Final = {spec.name: spec for spec in _specs()}
        self._found: dict[bytes, tuple[str, bool, bool]] = {}
        for spec in self.specs.values():
            for word in (spec.name.encode(), spec.name.upper().encode()):
                self._found[word] = (spec.name.upper(), spec.first > 0, spec.orderly)

    def find(self, word: bytes) -> tuple[str, bool, bool] | None:
        """The path of a command, whether it is about keys, and whether it finds its own place."""
        return self._found.get(word) or self._found.get(word.upper())
