"""Auth: who comes with which token, and what that lets them do.

The file of tokens is TOML, one line for each; it holds hashes, so that reading it gives nobody a
right, and must not be writable by others:

    alice = { sha256 = "9f86d0...", read = ["service."], write = ["service.a."] }
    backup = { sha256 = "60303a...", read = [""] }

`sha256` is the hash of the token in hexadecimal. `read` and `write` are prefixes of keys, the empty
one being that of all keys; neither right includes the other. `new_token` makes a token and its
line.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from nkv_core.contracts.identity import Identity, Right
from nkv_core.contracts.keyspace import (
    DEFAULT_OPTIONS,
    Capabilities,
    ChangePage,
    Check,
    Clear,
    Expect,
    Foreign,
    Keyspace,
    Operation,
    Options,
    Page,
    Tail,
    Transaction,
    Written,
)
from nkv_core.contracts.watch import Hub, Watcher, WatcherInfo
from nkv_core.errors import Forbidden, InvalidKey, SettingsError, Unauthenticated
from nkv_core.guarded_view import GuardedView
from nkv_core.keys import EVERYTHING, Pattern, check_prefix
from nkv_core.loop import Pending
from nkv_core.prompt import prompt_of
from nkv_core.records import Record, Token

T = TypeVar("T")

#: Whoever comes without a token to where none is needed. They may do nothing with keys.
NOBODY: Final = Identity("", ())

TOKEN_BYTES: Final = 32
MAX_FILE_BYTES: Final = 4 * 1024 * 1024

_HASH: Final = re.compile("[0-9a-f]{64}")


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


class Auth:
    """The tokens that this node knows, as hashes."""

    def __init__(self, entries: Iterable[tuple[bytes, Identity]]) -> None:
        """`entries`: the SHA-256 of each token, and whose it is."""
        self._entries: Final = tuple(entries)

    @classmethod
    def load(cls, path: str | Path) -> "Auth":
        """Read a file of tokens. Raises `SettingsError` where it is not to be trusted or read."""
        try:
            tables = tomllib.loads(_read_trusted(path).decode())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"The file of tokens {path} cannot be read: {error}.") from None
        if not tables:
            raise SettingsError(f"The file of tokens {path} has none: nobody could do anything.")
        entries: dict[bytes, Identity] = {}
        for name, table in tables.items():
            try:
                entry = msgspec.convert(table, _Entry)
                digest = _digest_of(entry.sha256)
                identity = Identity(name, _rights_of(entry))
            except (msgspec.ValidationError, InvalidKey) as error:
                raise SettingsError(f"{name!r} in the file of tokens {path}: {error}.") from None
            if digest in entries:
                raise SettingsError(
                    f"{entries[digest].name!r} and {name!r} in {path} have the same token."
                )
            entries[digest] = identity
        return cls(entries.items())

    def identify(self, credential: str | None) -> Identity:
        """Whose token this is. Raises `Unauthenticated` where it is nobody's.

        It takes as long for a wrong token as for a right one.
        """
        if credential is None:
            raise Unauthenticated
        digest = hashlib.sha256(credential.encode(errors="replace")).digest()
        known: Identity | None = None
        for hashed, identity in self._entries:
            if hmac.compare_digest(hashed, digest):
                known = identity
        if known is None:
            raise Unauthenticated("The token is not known here.")
        return known


def new_token(name: str, rights: Sequence[Right]) -> tuple[str, str]:
    """Make a token: 256 random bits as text, and its line for the file of tokens.

    Raises `SettingsError` where the name is empty, and `InvalidKey` where a prefix is not one.
    """
    if not name or not name.isprintable():
        raise SettingsError(f"{name!r} cannot be the name of a token.")
    for right in rights:
        check_prefix(right.prefix)
    token = "nkv_" + secrets.token_urlsafe(TOKEN_BYTES)
    read = [right.prefix for right in rights if right.read]
    write = [right.prefix for right in rights if right.write]
    digest = hashlib.sha256(token.encode()).hexdigest()
    line = (
        f"{_quoted(name)} = {{ sha256 = {_quoted(digest)}, "
        f"read = {_quoted(read)}, write = {_quoted(write)} }}"
    )
    return token, line


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # of text and lists of it TOML has the same form


def _read_trusted(path: str | Path) -> bytes:
    """Read a file that only this user, or root, may change."""
    with open(path, "rb", opener=_without_waiting) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise SettingsError(f"The file of tokens {path} is not a regular file.")
        if about.st_uid not in (0, os.geteuid()):
            raise SettingsError(f"The file of tokens {path} belongs to another user.")
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SettingsError(
                f"The file of tokens {path} may be changed by others: chmod go-w {path}"
            )
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise SettingsError(f"The file of tokens {path} is larger than {MAX_FILE_BYTES} bytes.")
    return content


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would have us wait


def _digest_of(text: str) -> bytes:
    if not _HASH.fullmatch(text):
        raise msgspec.ValidationError("`sha256` is not 64 hexadecimal digits in lower case")
    return bytes.fromhex(text)


def _rights_of(entry: _Entry) -> tuple[Right, ...]:
    prefixes = dict.fromkeys((*entry.read, *entry.write))
    for prefix in prefixes:
        check_prefix(prefix)
    return tuple(
        Right(prefix, read=prefix in entry.read, write=prefix in entry.write) for prefix in prefixes
    )


class GuardedKeyspace:
    """A keyspace for one who may not do everything. Raises `Forbidden` for what they may not.

    What was there before is told to those who may write and not read without its value.
    """

    __slots__ = ("_identity", "_keyspace")

    def __init__(self, keyspace: Keyspace, identity: Identity) -> None:
        self._keyspace = keyspace
        self._identity = identity

    def guard(self, hub: Hub) -> Hub:
        """A hub that lets the same one watch what they may read."""
        return GuardedHub(hub, self._identity)

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        return self._keyspace.capabilities

    @property
    def history(self) -> str:
        """The id of its history."""
        return self._keyspace.history

    @property
    def token(self) -> Token:
        """The place behind the last committed change."""
        return self._keyspace.token

    async def get(self, key: str, options: Options = DEFAULT_OPTIONS) -> Record | None:
        """Needs the right to read the key."""
        self.must_read(key)
        return await self._keyspace.get(key, options)

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        expires: int | None = None,
        expect: Expect = None,
        cause: str = "put",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Needs the right to write the key."""
        self.must_write(key)
        return self.told(
            await self._keyspace.put(
                key, value, expires=expires, expect=expect, cause=cause, options=options
            )
        )

    async def delete(
        self,
        key: str,
        *,
        expect: Expect = None,
        cause: str = "delete",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Needs the right to write the key."""
        self.must_write(key)
        return self.told(
            await self._keyspace.delete(key, expect=expect, cause=cause, options=options)
        )

    async def touch(
        self,
        key: str,
        expires: int | None,
        *,
        expect: Expect = None,
        cause: str = "touch",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Needs the right to write the key."""
        self.must_write(key)
        return self.told(
            await self._keyspace.touch(key, expires, expect=expect, cause=cause, options=options)
        )

    async def batch(
        self,
        operations: Sequence[Operation],
        checks: Sequence[Check] = (),
        options: Options = DEFAULT_OPTIONS,
    ) -> list[Written]:
        """Needs the right to write what is changed, and to read what is checked."""
        for check in checks:
            self.must_read(check.key)
        for operation in operations:
            self.must_write(operation.prefix if isinstance(operation, Clear) else operation.key)
        written = await self._keyspace.batch(operations, checks, options)
        return [self.told(each) for each in written]

    async def clear(
        self, prefix: str = "", *, cause: str = "clear", options: Options = DEFAULT_OPTIONS
    ) -> Written:
        """Needs the right to write every key that begins with the prefix."""
        self.must_write(prefix)
        return await self._keyspace.clear(prefix, cause=cause, options=options)

    async def scan(
        self,
        pattern: Pattern = EVERYTHING,
        *,
        after: str | None = None,
        limit: int = 1000,
        options: Options = DEFAULT_OPTIONS,
    ) -> Page:
        """Needs the right to read every key with the pattern's literal beginning."""
        self.must_read(pattern.prefix)
        return await self._keyspace.scan(pattern, after=after, limit=limit, options=options)

    async def count(self) -> int:
        """Needs the right to read everything."""
        self.must_read("")
        return await self._keyspace.count()

    async def changes(
        self, since: Token, pattern: Pattern = EVERYTHING, *, limit: int = 1000
    ) -> ChangePage:
        """Needs the right to read every key with the pattern's literal beginning."""
        self.must_read(pattern.prefix)
        return await self._keyspace.changes(since, pattern, limit=limit)

    def tail(self, listener: Tail) -> Callable[[], None]:
        """Needs the right to read everything."""
        self.must_read("")
        return self._keyspace.tail(listener)

    async def apply_foreign(self, records: Sequence[Foreign]) -> int:
        """Needs the right to write everything."""
        self.must_write("")
        return await self._keyspace.apply_foreign(records)

    def get_now(self, key: str) -> Record | Awaitable[Record | None] | None:
        """Needs the right to read the key."""
        self.must_read(key)
        return prompt_of(self._keyspace).get_now(key)

    def write_now(self, operation: Operation) -> Written | Awaitable[Written]:
        """Needs the right to write the key, or every key that begins with the prefix."""
        self.must_write(operation.prefix if isinstance(operation, Clear) else operation.key)
        written = prompt_of(self._keyspace).write_now(operation)
        if isinstance(written, Written):
            return self.told(written)
        return written.map(self.told) if isinstance(written, Pending) else self._told_later(written)

    async def _told_later(self, written: Awaitable[Written]) -> Written:
        return self.told(await written)

    def transact_now(
        self, transaction: Transaction[T], keys: Sequence[str], size: int = 0
    ) -> T | Awaitable[T]:
        """Needs the right to read what the transaction reads, and to write what it writes."""
        return prompt_of(self._keyspace).transact_now(
            lambda view: transaction(GuardedView(view, self)), keys, size
        )

    def must_read(self, prefix: str) -> None:
        """Raise `Forbidden` without the right to read every key that begins with `prefix`."""
        if not self._identity.may_read(prefix):
            raise _forbidden(prefix, "read")

    def must_write(self, prefix: str) -> None:
        """Raise `Forbidden` without the right to write every key that begins with `prefix`."""
        if not self._identity.may_write(prefix):
            raise _forbidden(prefix, "write")

    def told(self, written: Written) -> Written:
        """What this one may know of what a write did."""
        of = written.record or written.previous
        if of is None or self._identity.may_read(of.key):
            return written
        return msgspec.structs.replace(
            written, record=_blank(written.record), previous=_blank(written.previous)
        )


def _forbidden(prefix: str, right: str) -> Forbidden:
    what = f"the key or prefix {prefix[:200]!r}" if prefix else "all keys"
    return Forbidden(f"The token lacks the right to {right} {what}.")


def _blank(record: Record | None) -> Record | None:
    return None if record is None else msgspec.structs.replace(record, value=b"")


class GuardedHub:
    """A watch hub for one who may not do everything: watching needs the right to read."""

    __slots__ = ("_hub", "_identity")

    def __init__(self, hub: Hub, identity: Identity) -> None:
        self._hub = hub
        self._identity = identity

    @property
    def token(self) -> Token:
        """The place behind the last change that was told."""
        return self._hub.token

    def watch(self, pattern: Pattern | str, **options: Any) -> Watcher:
        """Needs the right to read every key that the pattern could match. Raises `Forbidden`."""
        wanted = pattern if isinstance(pattern, Pattern) else Pattern(pattern)
        if not self._identity.may_read(wanted.prefix):
            raise _forbidden(wanted.prefix, "read")
        return self._hub.watch(wanted, **options)

    def watchers(self, limit: int = 1000) -> list[WatcherInfo]:
        """Needs the right to read everything: others' patterns are none of one's business."""
        if not self._identity.may_read(""):
            raise _forbidden("", "read")
        return self._hub.watchers(limit)
