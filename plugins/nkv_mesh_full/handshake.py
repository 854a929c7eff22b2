"""Handshake: who is at the other end of a connection, and whether it is let in."""

from collections.abc import Callable
from typing import Final, NamedTuple

from nkv_core.errors import BadRequest, Forbidden, NkvError
from nkv_core.records import wall_clock

from .channel import Channel
from .messages import (
    PROTOCOL,
    About,
    Challenge,
    Greeting,
    Hello,
    Proof,
    Purpose,
    Welcome,
)
from .trust import Trust

_CONNECTS: Final = b"connects"
_ACCEPTS: Final = b"accepts"


class OtherProtocol(Forbidden):
    """The other node speaks another version of this protocol."""

    code = "other_protocol"


class ClockSkew(Forbidden):
    """The clock of the other node is too far from ours."""

    code = "clock_skew"


class SameNode(Forbidden):
    """Another node of this id is a member already."""

    code = "same_node"


class OtherLimits(Forbidden):
    """The other node has other limits for keys or values."""

    code = "other_limits"


class Itself(NkvError):
    """The node has reached itself."""

    code = "itself"


class Terms(NamedTuple):
    """On what others are let in."""

    trust: Trust
    about: Callable[[int | None], About]  #: of this node, as told to the one of that id
    max_skew: int  #: milliseconds
    most: int  #: bytes of a message
    wall: Callable[[], int] = wall_clock


async def connect(channel: Channel, terms: Terms, purpose: Purpose, peer: int | None) -> Welcome:
    """Prove who we are to the one who accepts, and have it prove who it is.

    Raises `WrongSecret` and its kin, `PeerRefused`, `Itself`, `BadRequest`.
    """
    nonce = terms.trust.nonce()
    await channel.send(Greeting(PROTOCOL, nonce))
    challenge = await channel.expect(Challenge)
    _same_protocol(challenge.protocol)
    terms.trust.check(challenge.proof, _ACCEPTS, nonce, challenge.nonce)
    await channel.send(Proof(terms.trust.proof(_CONNECTS, nonce, challenge.nonce)))
    _seal(channel, terms, nonce, challenge.nonce, connects=True)
    begun = terms.wall()
    await channel.send(Hello(terms.about(peer), purpose))
    welcome = await channel.expect(Welcome)
    check(welcome.about, terms, begun)
    return welcome


async def accept(channel: Channel, terms: Terms) -> Hello:
    """Have the one who connects prove who it is. `Welcome` is left to the caller.

    Raises as `connect`.
    """
    greeting = await channel.expect(Greeting)
    _same_protocol(greeting.protocol)
    nonce = terms.trust.nonce()
    proof = terms.trust.proof(_ACCEPTS, greeting.nonce, nonce)
    begun = terms.wall()
    await channel.send(Challenge(PROTOCOL, nonce, proof))
    theirs = await channel.expect(Proof)
    terms.trust.check(theirs.proof, _CONNECTS, greeting.nonce, nonce)
    _seal(channel, terms, greeting.nonce, nonce, connects=False)
    hello = await channel.expect(Hello)
    check(hello.about, terms, begun)
    return hello


def check(about: About, terms: Terms, begun: int) -> None:
    """Whether a node may be a member beside this one.

    `begun`: when it was asked, in milliseconds since 1970; its clock was read since then.
    """
    own = terms.about(about.node_id)
    if about.node_id == own.node_id:
        if about.boot == own.boot:
            raise Itself
        raise SameNode(
            f"{about.address} has the id {about.node_id:016x} of this node too: was its data"
            " directory copied? Delete the id in the copy."
        )
    refuse_skew(about.wall, begun, terms, about.address)
    if (about.max_key, about.max_value) != (own.max_key, own.max_value):
        raise OtherLimits(
            f"{about.address} takes keys of {about.max_key} and values of {about.max_value} bytes,"
            f" this node {own.max_key} and {own.max_value}: keyspace.max_key_bytes and"
            " max_value_bytes must be the same in a mesh."
        )


def refuse_skew(wall: int, begun: int, terms: Terms, address: str) -> None:
    """Raise `ClockSkew` where a clock that was read since `begun` is too far from ours."""
    skew = max(wall - terms.wall(), 0) or min(wall - begun, 0)
    if abs(skew) > terms.max_skew:
        raise ClockSkew(
            f"The clock of {address} is {abs(skew) / 1000:.1f} s"
            f" {'ahead of' if skew > 0 else 'behind'} ours; mesh.full.max_skew allows"
            f" {terms.max_skew / 1000:g} s."
        )


def _same_protocol(theirs: int) -> None:
    if theirs != PROTOCOL:
        raise OtherProtocol(f"The other node speaks protocol {theirs}, this one {PROTOCOL}.")


def _seal(channel: Channel, terms: Terms, first: bytes, second: bytes, *, connects: bool) -> None:
    keys = [terms.trust.proof(b"key " + role, first, second) for role in (_CONNECTS, _ACCEPTS)]
    sending, receiving = keys if connects else reversed(keys)
    channel.seal(sending, receiving, terms.most)


#: What ends a handshake or a connection, and is to be told to the other side.
TELL: Final = (Forbidden, BadRequest)
