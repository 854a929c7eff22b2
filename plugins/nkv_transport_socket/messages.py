"""What a parser makes of the bytes of a client. Nothing here knows of sockets."""

from typing import Final, Literal

import msgspec

DialectName = Literal["line", "framed", "json"]

#: Stands for the id of a request whose own cannot be read.
NO_ID: Final = "-"


class Call(msgspec.Struct, frozen=True):
    """A request that can be carried out."""

    dialect: DialectName
    verb: str
    id: str
    client: str = ""
    key: str = ""
    value: bytes = b""  #: of a PUT
    token: str | None = None  #: of an AUTH


class Malformed(msgspec.Struct, frozen=True):
    """A request that cannot be carried out. With `fatal` nothing behind it can be read either."""

    dialect: DialectName
    id: str
    reason: str
    fatal: bool = False


class Hostile(msgspec.Struct, frozen=True):
    """What begins as HTTP does: a web page may be behind it. The connection is to be closed."""


Incoming = Call | Malformed | Hostile
