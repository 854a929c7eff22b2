"""What went wrong, as errors of nkv: problem documents, and connections that fail.

`Unreachable` says that the node did not get the request, or that it was one that changes nothing.
`OutcomeUnknown` says that a write was sent and no answer came.
"""

from typing import Final

import httpx2
import msgspec

from nkv_core import errors
from nkv_core.errors import (
    BadRequest,
    DeadlineExceeded,
    NkvError,
    OutcomeUnknown,
    Rejected,
    Unreachable,
)

_MAX_DETAIL: Final = 2000
#: The code of a reply that is longer than the client reads.
TOO_LONG: Final = "reply_too_long"
#: The code of an answer that is not one of a node.
UNEXPECTED: Final = "unexpected_reply"

#: Pauses before a request is sent again, in seconds; their number bounds how often it is.
RETRY_PAUSES: Final = (0.05, 0.2)

#: Failures of a connection that was never made: the node has seen nothing of the request.
_NEVER_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class _Problem(msgspec.Struct):
    code: str
    detail: str = ""
    title: str = ""


def _by_code() -> dict[str, type[NkvError]]:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    found = [kind for kind in classes if issubclass(kind, NkvError) and kind is not Rejected]
    return {kind.code: kind for kind in found}


_CLASSES: Final = _by_code()
_problem: Final = msgspec.json.Decoder(_Problem)


def problem(status: int, body: bytes) -> NkvError:
    """The error that a reply of this status and body stands for.

    A code that this client does not know gives an `NkvError` with that code and status; a body that
    is no problem document gives one that says so.
    """
    try:
        document = _problem.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = body[:80].decode("ascii", "replace")
        return with_code(UNEXPECTED, status, f"HTTP status {status}, body {text!r}.")
    detail = (document.detail or document.title)[:_MAX_DETAIL]
    kind = _CLASSES.get(document.code)
    if kind is None:
        return with_code(document.code[:100], status, detail)
    return kind(detail)


def with_code(code: str, status: int, detail: str) -> NkvError:
    """An error of a code that has no class here."""
    error = NkvError(detail)
    error.code = code  # type: ignore[misc]  # as `Rejected` does: a code of this instance
    error.status = status  # type: ignore[misc]
    return error


def unexpected(detail: str) -> NkvError:
    """The answer is not one that a node of nkv gives."""
    return with_code(UNEXPECTED, 502, detail)


def reply_too_long(limit: int, *, reads: bool) -> NkvError:
    """The reply has more bytes than the client takes; what a write did is not known then."""
    detail = f"The reply is longer than the {limit} bytes that this client reads."
    return with_code(TOO_LONG, 502, detail) if reads else OutcomeUnknown(detail)


def connection_failed(error: Exception, *, reads: bool, url: str) -> NkvError:
    """The error of nkv for one of the connection; `reads` says that the request changes nothing."""
    if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)):
        return BadRequest(f"The request cannot be sent to {url}: {error}.")
    if isinstance(error, _NEVER_SENT):
        return Unreachable(f"{url} does not answer: {_reason(error)}.")
    if isinstance(error, (TimeoutError, httpx2.TimeoutException)):
        if reads:
            return DeadlineExceeded(f"{url} did not answer in time.")
        return DeadlineExceeded(f"{url} did not answer in time; the write may still be made.")
    if reads:
        return Unreachable(f"The connection to {url} was lost: {_reason(error)}.")
    return OutcomeUnknown(
        f"The connection to {url} was lost before the answer to a write came: {_reason(error)}."
    )


def pause_before_retry(error: Exception, attempt: int, *, reads: bool) -> float | None:
    """How long to wait before the request is sent again; None where it must not be.

    A request goes out again where no connection was made, so that the node has seen nothing of it.
    One that changes nothing does so too where the connection was lost: a node that restarts, or one
    that closed an idle connection just then.
    """
    if attempt >= len(RETRY_PAUSES) or isinstance(error, (TimeoutError, httpx2.TimeoutException)):
        return None
    lost = isinstance(error, (httpx2.NetworkError, httpx2.RemoteProtocolError))
    if isinstance(error, httpx2.ConnectError) or (reads and lost):
        return RETRY_PAUSES[attempt]
    return None


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
