"""Messages between two nodes. MessagePack, each an array that begins with its name.

A connection begins with the handshake (`handshake`), which also says what it is for: `feed` carries
the changes of the one who connects, `compare` finds what two nodes differ in, `knock` only tells
who is there.
"""

from typing import Final, Literal

import msgspec

#: Two nodes speak with each other if theirs are equal.
PROTOCOL: Final = 1

Purpose = Literal["feed", "compare", "knock"]


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The base of all messages."""


# --- beginning ------------------------------------------------------------------------------------


class Greeting(Message, frozen=True):
    """The first word, of the one who connects."""

    protocol: int
    nonce: bytes


class Challenge(Message, frozen=True):
    """The answer to it, with the proof that the secret is known."""

    protocol: int
    nonce: bytes
    proof: bytes


class Proof(Message, frozen=True):
    """The proof of the one who connects. From here on each frame is sealed."""

    proof: bytes


class About(msgspec.Struct, frozen=True, array_like=True):
    """Who a node is."""

    node_id: int
    name: str
    address: str
    http: str  #: `host:port` for nkvd nodes; empty where there are none
    incarnation: int
    boot: bytes  #: random, of this run
    wall: int  #: milliseconds since 1970, as the message is sent
    max_key: int
    max_value: int
    tombstone_age: float  #: seconds
    history: str
    revision: int  #: of its last change
    seen: int | None  #: when it last had all that the other had, in milliseconds since 1970


class Hello(Message, frozen=True):
    """Who connects, and what for."""

    about: About
    purpose: Purpose


class Place(msgspec.Struct, frozen=True, array_like=True):
    """How far somebody has come in the stream of a node."""

    history: str
    revision: int
    mark: int | None  #: the timestamp of the change of that revision


class Rumour(msgspec.Struct, frozen=True, array_like=True):
    """What a node tells of another, or of itself."""

    node_id: int
    address: str
    name: str
    http: str
    incarnation: int
    gone: int = 0  #: 1: it has stopped; 2: it has left for good


class Welcome(Message, frozen=True):
    """The answer to `Hello`. `place` is where the feed is to go on."""

    about: About
    members: list[Rumour]
    place: Place | None = None


class Refusal(Message, frozen=True):
    """That the other is not let in, or not heard any longer. The connection is closed behind it."""

    code: str
    detail: str


# --- feed -----------------------------------------------------------------------------------------


class Start(Message, frozen=True):
    """Where the feed begins. Not `complete`: what came before must be found by comparing."""

    place: Place
    complete: bool


class Batch(Message, frozen=True):
    """Changes, as `entries` packs them. `upto` is the place behind them."""

    upto: int
    mark: int | None
    entries: list[msgspec.Raw]


class Ack(Message, frozen=True):
    """All up to this revision is durable."""

    upto: int


class Ping(Message, frozen=True):
    """Are you there? The sender knows these nodes, itself included, and gets feeds of `hears`."""

    wall: int
    head: int  #: the sender's last revision
    hears: list[int]
    members: list[Rumour]


class Pong(Message, frozen=True):
    """The answer to `Ping`: the same of the one who answers."""

    wall: int
    head: int
    hears: list[int]
    members: list[Rumour]


class Goodbye(Message, frozen=True):
    """The sender stops, or leaves for good."""

    incarnation: int
    for_good: bool


# --- comparing ------------------------------------------------------------------------------------


class Compare(Message, frozen=True):
    """The beginning of a comparison, and its answer."""

    clears: list[msgspec.Raw]
    cutoff: int  #: deletions before this timestamp are left out
    vector: dict[int, int]  #: by node, the timestamp up to which all of its writes have come
    hears: list[int]
    stale: bool  #: the two have not met for longer than deletions are remembered


class Ask(Message, frozen=True):
    """Tell the digests below these nodes of the tree's `level`."""

    level: int
    nodes: list[int]


class Digests(Message, frozen=True):
    """The answer, in order."""

    digests: list[int]


class Leaves(Message, frozen=True):
    """All that the sender has in these leaves: by hash of the key, timestamp, origin, digest."""

    leaves: list[int]
    have: dict[int, tuple[int, int, int]]


class Entries(Message, frozen=True):
    """Entries that the other lacks. It answers with `Ack` of their number."""

    entries: list[msgspec.Raw]


class Want(Message, frozen=True):
    """The end of the entries: these are wanted in return, and these must be dropped."""

    want: list[int]
    drop: list[int]


class Done(Message, frozen=True):
    """There is nothing more."""


#: All that can follow the length of a frame.
MESSAGES: Final[tuple[type[Message], ...]] = (
    Greeting,
    Challenge,
    Proof,
    Hello,
    Welcome,
    Refusal,
    Start,
    Batch,
    Ack,
    Ping,
    Pong,
    Goodbye,
    Compare,
    Ask,
    Digests,
    Leaves,
    Entries,
    Want,
    Done,
)
