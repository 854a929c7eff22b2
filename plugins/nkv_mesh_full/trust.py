"""Trust: how nodes prove to each other that they belong together.

By a secret that all of them know, or by certificates of an authority that signs for none but them,
or both. The secret itself is never sent: each side sends a random number, and an HMAC-SHA-256 over
both (RFC 2104), which only somebody with the secret can make.
"""

import hmac
import secrets
import ssl
from hashlib import sha256
from pathlib import Path
from typing import Final

from nkv_core.errors import Forbidden, SettingsError, StartError

from .addresses import is_loopback
from .settings import FullSettings

_NONCE: Final = 32


class WrongSecret(Forbidden):
    """The other node does not know the secret of this mesh."""

    code = "wrong_secret"


class Trust:
    """What this node has to prove itself, and to have others do so."""

    def __init__(self, settings: FullSettings) -> None:
        """Raises `SettingsError` where a file cannot be used, and `StartError` where strangers
        could join.
        """
        self._secret: Final = _secret(settings)
        self.server: Final = _context(settings, ssl.PROTOCOL_TLS_SERVER)
        self.client: Final = _context(settings, ssl.PROTOCOL_TLS_CLIENT)
        #: Whether anybody has to prove anything.
        self.guarded: Final = bool(self._secret) or self.server is not None
        if not self.guarded and not is_loopback(settings.host):
            raise StartError(
                f"A mesh at {settings.host} needs mesh.full.secret (or secret_file), or"
                " certificates: whoever reaches it could read and change everything."
            )

    @staticmethod
    def nonce() -> bytes:
        """A random number for one connection."""
        return secrets.token_bytes(_NONCE)

    def proof(self, role: bytes, ours: bytes, theirs: bytes) -> bytes:
        """What shows that the secret is known. `ours` is the nonce of the one who connects."""
        if len(ours) != _NONCE or len(theirs) != _NONCE:
            raise WrongSecret
        return hmac.digest(self._secret, b"nkv mesh 1 " + role + ours + theirs, "sha256")

    def check(self, proof: bytes, role: bytes, ours: bytes, theirs: bytes) -> None:
        """Raise `WrongSecret` where it is not the right one."""
        if not hmac.compare_digest(proof, self.proof(role, ours, theirs)):
            raise WrongSecret


def _secret(settings: FullSettings) -> bytes:
    text = settings.secret or ""
    if settings.secret_file is not None:
        try:
            text = Path(settings.secret_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"mesh.full.secret_file cannot be read: {error}.") from None
        if len(text) < 16:
            raise SettingsError("mesh.full.secret_file: the secret needs 16 characters at least.")
    return sha256(text.encode()).digest() if text else b""


def _context(settings: FullSettings, protocol: int) -> ssl.SSLContext | None:
    if settings.tls_certificate is None:
        return None
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A node is whoever the authority says: it signs for none but the nodes of this mesh. Names of
    # hosts, which come and go, say no more.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
        context.load_verify_locations(settings.tls_authority)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"mesh.full.tls_*: a file cannot be used: {error}.") from None
    return context
