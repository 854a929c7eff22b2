"""The errors of the nkvd dialect: `{"error": CODE}`, with codes of its own."""

from typing import Final

import msgspec

from nkv_core.contracts.handlers import Reply, Request
from nkv_core.errors import BadRequest, MethodNotAllowed, NkvError, NoHandler, NotFound, Rejected

CONTENT_TYPE: Final = "text/json"


class MissingKeyParam(BadRequest):
    """There is no parameter `k`."""

    code = "MISSING_KEY_PARAM"


class EmptyKey(BadRequest):
    """The parameter `k` is empty."""

    code = "EMPTY_KEY"


class KeyTooLong(BadRequest):
    """The key has as many UTF-16 units as the limit, or more."""

    code = "MAXIMUM_KEY_LENGTH_REACHED"


class MissingValueParam(BadRequest):
    """There is no parameter `v`."""

    code = "MISSING_VALUE_PARAM"


class ValueTooLong(BadRequest):
    """The value has as many UTF-16 units as the limit, or more."""

    code = "MAXIMUM_VALUE_LENGTH_REACHED"


def nkvd_error(request: Request, error: NkvError) -> Reply:
    """The answer to an error in this dialect."""
    code = error.code
    if isinstance(error, NotFound):
        code = "MISSING_RECORD"
    elif isinstance(error, NoHandler):
        code = f"No register handler for [{request.path}]"
    elif not isinstance(error, Rejected):
        code = code.upper()
    headers = {"Content-Type": CONTENT_TYPE}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    return Reply(error.status, headers, msgspec.json.encode({"error": code}))
