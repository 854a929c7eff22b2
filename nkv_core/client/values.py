"""What the clients take and give."""

import msgspec

from nkv_core.errors import ConflictingConditions


class Item(msgspec.Struct, frozen=True, gc=False):
    """One record, as the node told it."""

    key: str
    value: bytes
    version: str  #: opaque: what `if_version` takes
    modified: int  #: timestamp of the write (`records.milliseconds_of` gives its time)
    expires: int | None = None  #: milliseconds since 1970


class Put(msgspec.Struct, frozen=True, gc=False):
    """Set a value, in a batch. At most one of `ttl` (seconds) and `expires` (milliseconds since
    1970), and at most one of the conditions.
    """

    key: str
    value: bytes
    ttl: float | None = None
    expires: int | None = None
    if_version: str | None = None
    if_absent: bool = False

    def __post_init__(self) -> None:
        """Raise `ConflictingConditions` where the fields exclude each other."""
        _check_expiry(self.ttl, self.expires)
        if self.if_version is not None and self.if_absent:
            raise ConflictingConditions("A record cannot have a version and be absent.")


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Delete a record, in a batch. Where there is none, nothing happens."""

    key: str
    if_version: str | None = None


class Touch(msgspec.Struct, frozen=True, gc=False):
    """Change when a record expires, in a batch; with neither `ttl` nor `expires` it never does.
    Where there is none, nothing happens.
    """

    key: str
    ttl: float | None = None
    expires: int | None = None
    if_version: str | None = None

    def __post_init__(self) -> None:
        """Raise `ConflictingConditions` where the fields exclude each other."""
        _check_expiry(self.ttl, self.expires)


class Clear(msgspec.Struct, frozen=True, gc=False):
    """Delete every record whose key begins with `prefix`, in a batch, as one change."""

    prefix: str


class Check(msgspec.Struct, frozen=True, gc=False):
    """A condition of a batch: the record has this version, or, where that is None, is absent."""

    key: str
    version: str | None


Operation = Put | Delete | Touch | Clear


def _check_expiry(ttl: float | None, expires: int | None) -> None:
    if ttl is not None and expires is not None:
        raise ConflictingConditions("Give the time to live or the expiry, not both.")


class Written(msgspec.Struct, frozen=True, gc=False):
    """What a write did."""

    version: str | None  #: of the record as it is now; None where there is none
    existed: bool  #: whether there was a record before
