"""Tagged: decodes messages of several types, told apart by their tags.

msgspec does this too, for a union of types. But it keeps every such union in a cache of its own,
with the types in it, and so the code of a plugin that has long been unloaded.
"""

from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


def tagged(protocol: ModuleType, *types: type[T]) -> Callable[[bytes | str], T]:
    """A function that decodes one message of one of these types.

    `protocol` is `msgspec.json` or `msgspec.msgpack`. The types have tags, in the same field if
    they are objects, or all are arrays. The function raises as the `decode` of msgspec.
    """
    decoders = {str(one.__struct_config__.tag): protocol.Decoder(one).decode for one in types}
    tag_of = _tag_reader(protocol, types[0])

    def decode(message: bytes | str) -> T:
        tag = tag_of(message)
        found = decoders.get(tag)
        if found is None:
            raise msgspec.ValidationError(f"Invalid value {tag!r} - at `{_path(types[0])}`")
        decoded: T = found(message)
        return decoded

    return decode


def _tag_reader(protocol: ModuleType, one: type[msgspec.Struct]) -> Callable[[bytes | str], str]:
    config = one.__struct_config__
    # What an array has behind the fields of a struct is left out, as are other fields of an object.
    form = msgspec.defstruct(
        "Tag",
        [("tag", str)],
        array_like=config.array_like,
        rename=None if config.array_like else {"tag": str(config.tag_field)},
    )
    decode = protocol.Decoder(form).decode

    def tag_of(message: bytes | str) -> str:
        tag: str = decode(message).tag
        return tag

    return tag_of


def _path(one: type[msgspec.Struct]) -> str:
    config = one.__struct_config__
    return "$[0]" if config.array_like else f"$.{config.tag_field}"
