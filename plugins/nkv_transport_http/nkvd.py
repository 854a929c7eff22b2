"""The nkvd dialect: operations as paths at the root, with parameters in the query."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import msgspec

from nkv_core.contracts.handlers import Handler, Handlers, Reply, Request, Stream
from nkv_core.contracts.keyspace import Keyspace, Page
from nkv_core.errors import Stopping
from nkv_core.operations import delete, get, text_of

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

_HEADERS: Final = {"Content-Type": CONTENT_TYPE}
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
    async def set(self, request: Request) -> Reply:
        """Set the value of a key. It does not expire."""
        key = self._key(request)
        value = request.params.get("v")
        if value is None:
            raise MissingValueParam
        if utf16_length(value) >= self._max_value:
            raise ValueTooLong
        await request.keyspace.put(key, value.encode())
        return _SUCCESS

    @described(query=_KEY, answers=_ANSWERS)
    async def get(self, request: Request) -> Reply:
        """The value of a key, as a JSON string."""
        record = await get(request.keyspace, self._key(request))
        return _json(text_of(record))

    @described(query={**_KEY, **_ALONE}, answers=_ANSWERS)
    async def remove(self, request: Request) -> Reply:
        """Delete a record."""
        await delete(request.keyspace, self._key(request))
        return _SUCCESS

    @described(query=_KEY, answers=_ANSWERS)
    async def exists(self, request: Request) -> Reply:
        """Whether there is a record."""
        await get(request.keyspace, self._key(request))
        return _SUCCESS

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


def utf16_length(text: str) -> int:
    """The length of a text in UTF-16 units: those beyond the basic plane count two."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def _json(body: Any) -> Reply:
    return Reply(200, _HEADERS, _encode(body))


def _break_off() -> bytes:
    """Half a list must not look whole."""
    raise Stopping
