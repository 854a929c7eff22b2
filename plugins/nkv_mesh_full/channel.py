"""Channel: messages over a connection, in frames that are bounded and sealed.

A frame is its length (4 bytes, big-endian), 16 bytes of seal, and a message. The seal is the
beginning of an HMAC-SHA-256 (RFC 2104) over the number of the frame and its message, with a key
that both sides made in the handshake: nobody in between can change, repeat or leave out a frame.
"""

import hmac
from typing import Final, TypeVar

import anyio
import msgspec
from anyio.abc import ByteStream

from nkv_core.errors import BadRequest, NkvError
from nkv_core.tagged import tagged

from .messages import MESSAGES, Message, Refusal

M = TypeVar("M", bound=Message)

_LENGTH: Final = 4
_SEAL: Final = 16
_HEADER: Final = _LENGTH + _SEAL
_UNSEALED: Final = bytes(_SEAL)
#: Seconds for which the other may take nothing of a frame.
_SEND: Final = 30.0
#: What the other may send before it has proved anything.
HANDSHAKE_BYTES: Final = 4096

_encoder: Final = msgspec.msgpack.Encoder()
_decode: Final = tagged(msgspec.msgpack, *MESSAGES)


class PeerRefused(NkvError):
    """The other node does not let this one in, or does not hear it any longer."""

    code = "peer_refused"
    status = 403

    def __init__(self, detail: str, reason: str = "") -> None:
        super().__init__(detail)
        self.reason: Final = reason  #: the code that the other gave


class Channel:
    """One connection. Any task may send; one at a time receives.

    Its methods raise `anyio.EndOfStream` and its kin where the connection has ended, and `send`
    `TimeoutError` where the other takes nothing.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._most = HANDSHAKE_BYTES
        self._sending: Final = anyio.Lock()
        self._keys: tuple[bytes, bytes] | None = None
        self._numbers = [0, 0]
        self.sent = 0  #: bytes
        self.received = 0  #: bytes

    def replace(self, stream: ByteStream) -> None:
        """Go on over another stream, which is made around the first one."""
        self._stream = stream

    def seal(self, sending: bytes, receiving: bytes, most: int) -> None:
        """From now on seal all frames with these keys, and take frames of up to `most` bytes."""
        self._keys = (sending, receiving)
        self._most = most

    async def send(self, message: Message) -> None:
        """Send a message."""
        body = _encoder.encode(message)
        async with self._sending:
            frame = len(body).to_bytes(_LENGTH, "big") + self._made(0, body) + body
            self.sent += len(frame)
            with anyio.fail_after(_SEND):
                await self._stream.send(frame)

    async def receive(self) -> Message:
        """The next message. Raises `BadRequest` where it is none, or not sealed as it should be."""
        header = await self._exactly(_HEADER)
        size = int.from_bytes(header[:_LENGTH], "big")
        if size > self._most:
            raise BadRequest(f"A message of {size} bytes is too large: {self._most} are taken.")
        body = await self._exactly(size)
        if not hmac.compare_digest(header[_LENGTH:], self._made(1, body)):
            raise BadRequest("The seal of a message is wrong: somebody in between has changed it.")
        try:
            return _decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"A message cannot be read: {error}.") from None

    async def expect(self, *kinds: type[M], deadline: float | None = None) -> M:
        """The next message, if it is one of these. Raises `PeerRefused`, `BadRequest`, and
        `TimeoutError` where it does not come within `deadline` seconds.
        """
        with anyio.fail_after(deadline):
            message = await self.receive()
        if isinstance(message, kinds):
            return message
        if isinstance(message, Refusal):
            raise PeerRefused(message.detail, message.code)
        raise BadRequest(f"{type(message).__name__} has no place here.")

    async def refuse(self, error: NkvError) -> None:
        """Tell the other why it is not heard any longer, if it still listens."""
        with anyio.move_on_after(1):
            try:
                await self.send(Refusal(error.code, error.detail))
            except (OSError, TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    async def aclose(self) -> None:
        """Close the connection."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(1):
            await self._stream.aclose()

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            piece = await self._stream.receive(256 * 1024)
            self.received += len(piece)
            self._buffer += piece
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _made(self, which: int, body: bytes) -> bytes:
        if self._keys is None:
            return _UNSEALED
        number = self._numbers[which]
        self._numbers[which] += 1
        return hmac.digest(self._keys[which], number.to_bytes(8, "big") + body, "sha256")[:_SEAL]
