"""What a write must be before it is let in: keys, values, expiries, and the bounds on all of them.

Everything that could fail later for reasons of its own is refused here. What has been queued shares
its fate with the rest of its group.
"""

from collections.abc import Sequence
from typing import Final

from nkv_core.contracts.keyspace import Check, Clear, Delete, Foreign, Operation, Put, Touch
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import BadRequest, InvalidExpiry, ValueTooLarge
from nkv_core.keys import check_key, check_prefix
from nkv_core.records import RangeTombstone, Record, timestamp_at

#: Bytes that a waiting write takes besides its key and value, roughly.
WRITE_BYTES: Final = 256

_LAST_MILLISECOND: Final = (1 << 47) - 1  # in the year 6429; beyond it a timestamp could overflow
_LAST_TIMESTAMP: Final = timestamp_at(_LAST_MILLISECOND)
_LAST_ID: Final = (1 << 64) - 1


class Checker:
    """Checks what is written against the limits of one keyspace."""

    __slots__ = ("_max_batch", "_max_key", "_max_value")

    def __init__(self, settings: KeyspaceSettings) -> None:
        self._max_key: Final = settings.max_key_bytes
        self._max_value: Final = settings.max_value_bytes
        self._max_batch: Final = settings.max_batch

    def key(self, key: str) -> bytes:
        """The key in bytes. Raises `InvalidKey`."""
        return check_key(key, self._max_key)

    def prefix(self, prefix: str) -> bytes:
        """The prefix in bytes. Raises `InvalidKey`."""
        return check_prefix(prefix, self._max_key)

    def operation(self, operation: Operation) -> bytes:
        """The key or prefix of an operation, in bytes.

        Raises `InvalidKey`, `ValueTooLarge`, `InvalidExpiry`.
        """
        cause = operation.cause
        if not (isinstance(cause, str) and cause.isascii()):
            raise TypeError(f"A cause is an ASCII word, not {cause!r}.")
        if isinstance(operation, Clear):
            return self.prefix(operation.prefix)
        encoded = self.key(operation.key)
        if isinstance(operation, Delete):
            return encoded
        if operation.expires is not None:
            _check_expiry(operation.expires)
        if isinstance(operation, Put):
            self._check_value(operation.value)
        elif not isinstance(operation, Touch):
            raise TypeError(f"{operation!r} is no operation.")
        return encoded

    def batch(
        self, operations: Sequence[Operation], checks: Sequence[Check]
    ) -> tuple[list[tuple[bytes, Operation]], list[tuple[bytes, Check]]]:
        """The same for a whole batch. Raises `BadRequest` where it has too many parts."""
        if len(operations) + len(checks) > self._max_batch:
            raise BadRequest(
                f"The batch has {len(operations) + len(checks)} operations and checks; "
                f"the limit is {self._max_batch} (keyspace.max_batch)."
            )
        return (
            [(self.operation(operation), operation) for operation in operations],
            [(self.key(check.key), check) for check in checks],
        )

    def foreign(self, one: Foreign) -> bytes:
        """The key or prefix of what comes from another node, in bytes.

        Raises `BadRequest` and the errors of `operation`.
        """
        if not (0 <= one.modified <= _LAST_TIMESTAMP and 0 <= one.origin <= _LAST_ID):
            raise BadRequest("The timestamp or origin of a record is out of range.")
        if isinstance(one, RangeTombstone):
            return self.prefix(one.prefix)
        encoded = self.key(one.key)
        if isinstance(one, Record):
            self._check_value(one.value)
            if one.expires is not None:
                _check_expiry(one.expires)
        return encoded

    def _check_value(self, value: bytes) -> None:
        if not isinstance(value, bytes):
            raise TypeError(f"A value is bytes, not {type(value).__name__}.")
        if len(value) > self._max_value:
            raise ValueTooLarge(
                f"The value has {len(value)} bytes; the limit is {self._max_value}."
            )


def size_of(encoded: bytes, what: object) -> int:
    """Roughly how many bytes an operation or a record takes while it waits."""
    value = getattr(what, "value", b"")
    return WRITE_BYTES + len(encoded) + len(value)


def _check_expiry(expires: int) -> None:
    if not isinstance(expires, int) or not 0 < expires <= _LAST_MILLISECOND:
        raise InvalidExpiry(f"{expires!r} is not a number of milliseconds since 1970.")
