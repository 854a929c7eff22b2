"""Arguments: words of a command as keys, numbers, expiries. What cannot be one raises `Refusal`."""

from typing import Final

from nkv_core.errors import InvalidKey

from .replies import NOT_A_NUMBER, Refusal

LEAST: Final = -(1 << 63)
MOST: Final = (1 << 63) - 1


def key_of(word: bytes) -> str:
    """A key as text. Raises `InvalidKey` where it is not UTF-8; the keyspace checks the rest."""
    try:
        return word.decode()
    except UnicodeDecodeError:
        raise InvalidKey("The key is not UTF-8 text, which keys of this node are.") from None


def number_of(word: bytes, text: str = NOT_A_NUMBER) -> int:
    """A whole number of 64 bits, in the one form that Redis takes: no plus, no zeros in front."""
    if 0 < len(word) <= 20 and word.lstrip(b"-").isdigit():
        number = int(word) if word.count(b"-") <= 1 else MOST + 1
        if LEAST <= number <= MOST and word == b"%d" % number:
            return number
    raise Refusal(text)


def count_of(word: bytes) -> int:
    """A number that is above 0."""
    number = number_of(word)
    if number <= 0:
        raise Refusal("ERR syntax error")
    return number


def expiry_of(word: bytes, *, seconds: bool, since: int | None, command: str) -> int:
    """When something expires, in milliseconds since 1970. `since` is now for a time to live.

    Raises `Refusal` where it lies beyond what 64 bits of milliseconds hold.
    """
    number = number_of(word)
    milliseconds = number * 1000 if seconds else number
    at = milliseconds if since is None else milliseconds + since
    if not LEAST <= milliseconds <= MOST or not LEAST <= at <= MOST:
        raise invalid_expire(command)
    return at


def invalid_expire(command: str) -> Refusal:
    """The refusal of an expiry."""
    return Refusal(f"ERR invalid expire time in '{command}' command")


def wrong_arity(command: str) -> Refusal:
    """The refusal of too few or too many words."""
    return Refusal(f"ERR wrong number of arguments for '{command}' command")


def name_of(word: bytes) -> str:
    """A command's name as it appears in errors: at most 128 bytes, on one line, up to a zero byte.

    Bytes that are no text stay as they are when the error is sent.
    """
    shown = word.partition(b"\0")[0][:128].decode(errors="surrogateescape")
    return shown.replace("\r", " ").replace("\n", " ")


def unknown_command(arguments: list[bytes]) -> Refusal:
    """The refusal of a command that nobody answers."""
    shown = ""
    for word in arguments[1:]:
        if len(shown) >= 128:
            break
        shown += f"'{name_of(word)[: 128 - len(shown)]}' "
    return Refusal(
        f"ERR unknown command '{name_of(arguments[0])}', with args beginning with: {shown}"
    )
