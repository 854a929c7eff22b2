"""The nkvd dialect: operations as paths at the root, with parameters in the query."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import MappingProxyType
from typing import Any, Final

import msgspec

from nkv_core.contracts.handlers import Handler, Handlers, Reply, Request, Stream
from nkv_core.contracts.keyspace import Delete, Keyspace, Page, Put, Written
from nkv_core.errors import NotFound, Stopping
from nkv_core.loop import Pending
from nkv_core.operations import text_of
from nkv_core.prompt import prompt_of
from nkv_core.records import Record

from .nkvd_errors import (
    CONTENT_TYPE,
    EmptyKey,
    KeyTooLong,
    MissingKeyParam,
    MissingValueParam,
    ValueTooLong,
    nkvd_error,
)
from .openapi import described
from .settings import HttpSettings

METHODS: Final = ("GET", "POST")
#: Paths that change data, on a GET too: what keeps web pages from changing data knows them.
CHANGING: Final = frozenset(("/set", "/rm", "/clear"))

_HEADERS: Final = MappingProxyType({"Content-Type": CONTENT_TYPE})
_encode: Final = msgspec.json.Encoder().encode
_SUCCESS: Final = Reply(200, _HEADERS, _encode({"success": True}))

_KEY: Final = {"k": "The key."}
_ALONE: Final = {"noReplicate": "Accepted for the sake of nkvd's clients."}
_ANSWERS: Final = {200: CONTENT_TYPE}

#: What a record is in a list, given its key and its value.
Item = Callable[[str, str], Any]


class Nkvd:
    """The handlers, with what they have to know."""

    def __init__(self, settings: HttpSettings, version: str, port: Callable[[], int]) -> None:
        self._max_key = settings.nkvd_max_key_length
        self._max_value = settings.nkvd_max_value_length
        self._version = version
        self._port = port
        #: How often a record was left out of a list because its value is not text.
        self.left_out = 0

    def register(self, handlers: Handlers) -> None:
        """Register all paths."""
        single: tuple[tuple[str, Handler, str], ...] = (
            ("/set", self.set, "put"),
            ("/get", self.get, "get"),
            ("/rm", self.remove, "delete"),
            ("/is", self.exists, "exists"),
            ("/clear", self.clear, "clear"),
            ("/status", self.status, "status"),
        )
        for path, handler, command in single:
            handlers.add(path, handler, METHODS, command=command, errors=nkvd_error, timeout=None)
        lists: tuple[tuple[str, Handler, str], ...] = (
            ("/getKeys", self.keys, "keys"),
            ("/getValues", self.values, "values"),
            ("/getAll", self.all, "list"),
        )
        for path, handler, command in lists:
            handlers.add(path, handler, METHODS, command=command, errors=nkvd_error)
        handlers.add(
            "/healthcheck",
            health,
            METHODS,
            command="health",
            errors=nkvd_error,
            timeout=None,
            public=True,
        )

    # --- single records ---------------------------------------------------------------------------

    @described(query={**_KEY, "v": "The value.", **_ALONE}, answers=_ANSWERS)
    def set(self, request: Request) -> Any:
        """Set the value of a key. It does not expire."""
        key = self._key(request)
        value = request.params.get("v")
        if value is None:
            raise MissingValueParam
        if utf16_length(value) >= self._max_value:
            raise ValueTooLong
        return _written(request, Put(key, value.encode()), _succeeded)

    @described(query=_KEY, answers=_ANSWERS)
    def get(self, request: Request) -> Any:
        """The value of a key, as a JSON string."""
        return _read(request, self._key(request), _value)

    @described(query={**_KEY, **_ALONE}, answers=_ANSWERS)
    def remove(self, request: Request) -> Any:
        """Delete a record."""
        return _written(request, Delete(self._key(request)), _removed)

    @described(query=_KEY, answers=_ANSWERS)
    def exists(self, request: Request) -> Any:
        """Whether there is a record."""
        return _read(request, self._key(request), _is_there)

    def _key(self, request: Request) -> str:
        key = request.params.get("k")
        if key is None:
            raise MissingKeyParam
        if not key:
            raise EmptyKey
        if utf16_length(key) >= self._max_key:
            raise KeyTooLong
        return key

    # --- all records ------------------------------------------------------------------------------

    @described(query=_ALONE, answers=_ANSWERS)
    async def clear(self, request: Request) -> Reply:
        """Delete every record."""
        await request.keyspace.clear()
        return _SUCCESS

    @described(answers=_ANSWERS)
    async def keys(self, request: Request) -> Reply | Stream:
        """All keys, in key order."""
        return await self._list(request, lambda key, _: key)

    @described(answers=_ANSWERS)
    async def values(self, request: Request) -> Reply | Stream:
        """All values, in key order."""
        return await self._list(request, lambda _, value: value)

    @described(answers=_ANSWERS)
    async def all(self, request: Request) -> Reply | Stream:
        """All records, in key order."""
        return await self._list(request, lambda key, value: {"k": key, "v": value})

    async def _list(self, request: Request, item: Item) -> Reply | Stream:
        first = await request.keyspace.scan()
        if first.after is None:
            return Reply(200, _HEADERS, b"[" + b",".join(self._items(first, item)) + b"]")
        pieces = self._pieces(request.keyspace, first, item)
        return Stream(pieces, CONTENT_TYPE, goodbye=_break_off)

    async def _pieces(self, keyspace: Keyspace, page: Page, item: Item) -> AsyncIterator[bytes]:
        """A list that is too long to be held at once: a page at a time."""
        before = b"["
        while True:
            if items := b",".join(self._items(page, item)):
                yield before + items
                before = b","
            if page.after is None:
                break
            page = await keyspace.scan(after=page.after)
        yield b"[]" if before == b"[" else b"]"

    def _items(self, page: Page, item: Item) -> Iterator[bytes]:
        for record in page.records:
            try:
                yield _encode(item(record.key, record.value.decode()))
            except UnicodeDecodeError:
                self.left_out += 1

    # --- the node ---------------------------------------------------------------------------------

    @described(answers=_ANSWERS)
    async def status(self, request: Request) -> Reply:
        """What the node says about itself in this dialect."""
        return _json(
            {
                "version": self._version,
                "hostname": request.node.name,
                "port": self._port(),
                "maxKeyLength": self._max_key,
                "maxValueLength": self._max_value,
                "availableRecords": await request.keyspace.count(),
            }
        )


@described(answers=_ANSWERS)
def health(_: Request) -> Reply:
    """That the node answers."""
    return _json({"status": "ok"})


def _read(request: Request, key: str, reply: Callable[[Record], Reply]) -> Any:
    """The reply for a record, at once where it is there at once."""
    found = prompt_of(request.keyspace).get_now(key)
    if isinstance(found, Record):
        return reply(found)
    if found is None:
        raise NotFound
    return _read_later(found, reply)


async def _read_later(awaited: Awaitable[Record | None], reply: Callable[[Record], Reply]) -> Reply:
    found = await awaited
    if found is None:
        raise NotFound
    return reply(found)


def _written(request: Request, operation: Put | Delete, reply: Callable[[Written], Reply]) -> Any:
    """The reply for a write, at once where it is made at once."""
    written = prompt_of(request.keyspace).write_now(operation)
    if isinstance(written, Written):
        return reply(written)
    if isinstance(written, Pending):
        return written.map(reply)
    return _written_later(written, reply)


async def _written_later(awaited: Awaitable[Written], reply: Callable[[Written], Reply]) -> Reply:
    return reply(await awaited)


def _value(record: Record) -> Reply:
    return _json(text_of(record))


def _is_there(_: Record) -> Reply:
    return _SUCCESS


def _succeeded(_: Written) -> Reply:
    return _SUCCESS


def _removed(written: Written) -> Reply:
    if written.previous is None:
        raise NotFound
    return _SUCCESS


def utf16_length(text: str) -> int:
    """The length of a text in UTF-16 units: those beyond the basic plane count two."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def _json(body: Any) -> Reply:
    return Reply(200, _HEADERS, _encode(body))


def _break_off() -> bytes:
    """Half a list must not look whole."""
    raise Stopping
