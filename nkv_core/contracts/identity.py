"""Who asks, and what they may."""

import msgspec


class Right(msgspec.Struct, frozen=True):
    """What may be done to keys that begin with a prefix. The empty prefix is that of all keys."""

    prefix: str
    read: bool = True
    write: bool = False


class Identity(msgspec.Struct, frozen=True):
    """The owner of a token."""

    name: str
    rights: tuple[Right, ...]

    def may_read(self, prefix: str) -> bool:
        """Whether every key that begins with `prefix` may be read."""
        return any(right.read and prefix.startswith(right.prefix) for right in self.rights)

    def may_write(self, prefix: str) -> bool:
        """Whether every key that begins with `prefix` may be written."""
        return any(right.write and prefix.startswith(right.prefix) for right in self.rights)
