"""Messages of several types, told apart by their tags."""

import gc
import weakref

import msgspec
import pytest

from nkv_core.tagged import tagged


def object_types():
    class Base(msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True):
        pass

    class Put(Base, frozen=True, tag="put"):
        key: str

    class Get(Base, frozen=True, tag="get"):
        key: str
        old: bool = False

    return Put, Get


def array_types():
    class Put(msgspec.Struct, frozen=True, array_like=True, tag=True):
        key: str

    class Ping(msgspec.Struct, frozen=True, array_like=True, tag=True):
        pass

    return Put, Ping


@pytest.mark.parametrize("protocol", [msgspec.json, msgspec.msgpack])
@pytest.mark.parametrize("make_types", [object_types, array_types])
def test_gives_back_what_was_encoded(protocol, make_types):
    types = make_types()
    decode = tagged(protocol, *types)
    for one in types:
        made = one(*("a" for _ in one.__struct_fields__[:1]))
        assert decode(protocol.encode(made)) == made


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (b'{"op":"rob","key":"a"}', r"Invalid value 'rob' - at `\$\.op`"),
        (b'{"key":"a"}', "missing required field `op`"),
        (b'{"op":7,"key":"a"}', r"Expected `str`, got `int` - at `\$\.op`"),
        (b'{"op":"put","key":7}', r"Expected `str`, got `int` - at `\$\.key`"),
        (b'{"op":"put","key":"a","more":1}', "unknown field `more`"),
        (b'["put","a"]', "Expected `object`, got `array`"),
        (b"{", "truncated"),
    ],
)
def test_says_what_is_wrong(message, error):
    with pytest.raises(msgspec.DecodeError, match=error):
        tagged(msgspec.json, *object_types())(message)


def test_says_which_name_it_does_not_know():
    with pytest.raises(msgspec.ValidationError, match=r"Invalid value 'Pong' - at `\$\[0\]`"):
        tagged(msgspec.msgpack, *array_types())(msgspec.msgpack.encode(["Pong"]))


def test_the_types_live_no_longer_than_whoever_decodes_them():
    types = object_types()
    kept = [weakref.ref(one) for one in types]
    decode = tagged(msgspec.json, *types)
    decode(b'{"op":"get","key":"a"}')
    del types, decode
    gc.collect()
    assert [one() for one in kept] == [None, None]
