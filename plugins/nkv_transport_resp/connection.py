"""Commands about the connection and its client."""

from typing import TYPE_CHECKING, Any, Final

from .arguments import name_of, number_of, wrong_arity
from .replies import OK, PONG, SYNTAX, Raw, Refusal, Simple, encode
from .tracking import Tracking

if TYPE_CHECKING:
    from .session import Call, Session

#: What a client is told that takes us for Redis: the least version for which clients cache.
REDIS_VERSION: Final = "7.4.0"
_RESET: Final = Simple("RESET")
_BAD_NAME: Final = "ERR Client names cannot contain spaces, newlines or special characters."


def ping(call: "Call", words: list[bytes]) -> Any:
    """`PING [message]`."""
    if len(words) > 2:
        raise wrong_arity("ping")
    session = call.session
    message = words[1] if len(words) == 2 else None
    if session.protocol == 2 and (session.channels or session.patterns):
        return Raw(encode([b"pong", message or b""], 2))
    return PONG if message is None else message


def echo(_: "Call", words: list[bytes]) -> bytes:
    """`ECHO message`."""
    return words[1]


def select(_: "Call", words: list[bytes]) -> Any:
    """`SELECT 0`."""
    if number_of(words[1]) != 0:
        raise Refusal("ERR DB index is out of range")
    return OK


def quit_(call: "Call", _: list[bytes]) -> Any:
    """`QUIT`."""
    call.session.quit()
    return OK


def reset(call: "Call", _: list[bytes]) -> Any:
    """`RESET`."""
    session = call.session
    session.shared.forget(session)
    session.multi = None
    session.watched.clear()
    session.protocol = 2
    session.name = b""
    session.credential = session.identity = None
    return _RESET


# --- who is there ---------------------------------------------------------------------------------


def credential_of(path: str, words: list[bytes]) -> str | None:
    """The token that a command itself brings: it is checked before the command is carried out."""
    if path == "AUTH" and 2 <= len(words) <= 3:
        return words[-1].decode(errors="replace")
    if path == "HELLO":
        for at, word in enumerate(words[2:], 2):
            if word.upper() == b"AUTH" and at + 2 < len(words):
                return words[at + 2].decode(errors="replace")
    return None


def auth(call: "Call", words: list[bytes]) -> Any:
    """`AUTH [user] token`. To come so far, the token was found to be good where there are any."""
    if len(words) > 3:
        raise Refusal(SYNTAX)
    if call.identity is not None:
        _be(call)
        return OK
    if len(words) == 2:
        raise Refusal(
            "ERR AUTH <password> called without any password configured for the default user."
            " Are you sure your configuration is correct?"
        )
    _check_user(words[1])
    return OK


def _check_user(user: bytes) -> None:
    if user != b"default":
        raise Refusal("WRONGPASS invalid username-password pair or user is disabled.")


def _be(call: "Call") -> None:
    call.session.credential = call.credential
    call.session.identity = call.identity


def hello(call: "Call", words: list[bytes]) -> dict[str, Any]:
    """`HELLO [2 | 3 [AUTH user token] [SETNAME name]]`."""
    session = call.session
    protocol, name = session.protocol, None
    if len(words) > 1:
        protocol = number_of(words[1], "ERR Protocol version is not an integer or out of range")
        if protocol not in (2, 3):
            raise Refusal("NOPROTO unsupported protocol version")
    at = 2
    while at < len(words):
        option, left = words[at].upper(), len(words) - at - 1
        if option == b"AUTH" and left >= 2:
            if call.identity is None:
                _check_user(words[at + 1])
            at += 3
        elif option == b"SETNAME" and left >= 1:
            name = _checked_name(words[at + 1])
            at += 2
        else:
            raise Refusal(f"ERR Syntax error in HELLO option '{name_of(words[at])}'")
    if call.identity is not None:
        _be(call)
    if name is not None:
        session.name = name
    session.protocol = protocol
    return {
        "server": "redis",
        "version": REDIS_VERSION,
        "proto": protocol,
        "id": session.id,
        "mode": "standalone",
        "role": "master",
        "modules": [],
    }


def _checked_name(name: bytes) -> bytes:
    if any(not 0x21 <= character <= 0x7E for character in name):
        raise Refusal(_BAD_NAME)
    return name


# --- CLIENT ---------------------------------------------------------------------------------------


def client(call: "Call", words: list[bytes]) -> Any:
    """`CLIENT ID | INFO | LIST | KILL | SETNAME | GETNAME | SETINFO | TRACKING | ...`."""
    return _CLIENT[words[1].decode(errors="replace").lower()][2](call, words)


def check_client(words: list[bytes]) -> None:
    """Raise `Refusal` where a subcommand is none, or has not its number of words."""
    name = words[1].decode(errors="replace").lower()
    found = _CLIENT.get(name)
    if found is None:
        raise Refusal(f"ERR unknown subcommand '{name_of(words[1])}'. Try CLIENT HELP.")
    least, most, _ = found
    if not least <= len(words) <= most:
        raise wrong_arity(f"client|{name}")


def _id(call: "Call", _: list[bytes]) -> int:
    return call.session.id


def _info(call: "Call", _: list[bytes]) -> str:
    return _line(call.session) + "\n"


def _list(call: "Call", words: list[bytes]) -> str:
    sessions = list(call.session.shared.sessions.values())
    if len(words) > 2:
        option = words[2].upper()
        if option == b"ID" and len(words) > 3:
            wanted = {number_of(word, "ERR Invalid client ID") for word in words[3:]}
            sessions = [each for each in sessions if each.id in wanted]
        elif option == b"TYPE" and len(words) == 4:
            kind = words[3].lower()
            if kind not in (b"normal", b"pubsub", b"master", b"replica", b"slave"):
                raise Refusal(f"ERR Unknown client type '{name_of(words[3])}'")
            sessions = [each for each in sessions if _kind(each) == kind]
        else:
            raise Refusal(SYNTAX)
    _must_manage(call, sessions)
    return "".join(_line(each) + "\n" for each in sessions)


def _must_manage(call: "Call", sessions: "list[Session]") -> None:
    """Who may not do everything is told of, and ends, clients with the same token only."""
    identity = call.identity
    if identity is None or (identity.may_read("") and identity.may_write("")):
        return
    sessions[:] = [each for each in sessions if each.identity == identity]


def _kind(session: "Session") -> bytes:
    return b"pubsub" if session.channels or session.patterns else b"normal"


def _line(session: "Session") -> str:
    now = session.shared.loop.time()
    flags = "P" if session.channels or session.patterns else ""
    flags += "x" if session.multi is not None else ""
    if session.tracking is not None:
        flags += "tB" if session.tracking.broadcast else "t"
    multi = -1 if session.multi is None else len(session.multi.commands)
    user = "default" if session.identity is None else session.identity.name.replace(" ", "_")
    fields = {
        "id": session.id,
        "addr": session.peer,
        "laddr": session.local,
        "name": session.name.decode(),
        "age": int(now - session.began),
        "idle": int(now - session.last),
        "flags": flags or "N",
        "db": 0,
        "sub": len(session.channels),
        "psub": len(session.patterns),
        "multi": multi,
        "qbuf": session.query_bytes,
        "omem": session.output_bytes,
        "cmd": session.command.lower(),
        "user": user,
        "redir": -1 if session.tracking is None else session.tracking.redirect,
        "resp": session.protocol,
        "lib-name": session.library.decode(),
        "lib-ver": session.library_version.decode(),
    }
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _kill(call: "Call", words: list[bytes]) -> Any:
    everyone = call.session.shared.sessions
    if len(words) == 3:
        sessions = [each for each in everyone.values() if each.peer.encode() == words[2]]
        _must_manage(call, sessions)
        if not sessions:
            raise Refusal("ERR No such client")
        _end(call, sessions)
        return OK
    if len(words) % 2:
        raise Refusal(SYNTAX)
    sessions, skip_me = list(everyone.values()), True
    for option, value in zip(words[2::2], words[3::2], strict=True):
        match option.upper():
            case b"ID":
                wanted = number_of(value, "ERR client-id should be greater than 0")
                sessions = [each for each in sessions if each.id == wanted]
            case b"ADDR":
                sessions = [each for each in sessions if each.peer.encode() == value]
            case b"LADDR":
                sessions = [each for each in sessions if each.local.encode() == value]
            case b"TYPE":
                sessions = [each for each in sessions if _kind(each) == value.lower()]
            case b"USER":
                sessions = [each for each in sessions if _user(each) == value]
            case b"SKIPME" if value.lower() in (b"yes", b"no"):
                skip_me = value.lower() == b"yes"
            case _:
                raise Refusal(SYNTAX)
    _must_manage(call, sessions)
    if skip_me:
        sessions = [each for each in sessions if each is not call.session]
    _end(call, sessions)
    return len(sessions)


def _user(session: "Session") -> bytes:
    return b"default" if session.identity is None else session.identity.name.encode()


def _end(call: "Call", sessions: "list[Session]") -> None:
    for session in sessions:
        if session is call.session:
            session.quit()  # not before it has the reply
        else:
            session.cut()


def _setname(call: "Call", words: list[bytes]) -> Any:
    call.session.name = _checked_name(words[2])
    return OK


def _getname(call: "Call", _: list[bytes]) -> bytes | None:
    return call.session.name or None


def _setinfo(call: "Call", words: list[bytes]) -> Any:
    option, value = words[2].upper(), words[3]
    if option not in (b"LIB-NAME", b"LIB-VER"):
        raise Refusal(f"ERR Unrecognized option '{name_of(words[2])}'")
    if any(not 0x21 <= character <= 0x7E for character in value):
        what = option.decode().lower()
        raise Refusal(f"ERR {what} cannot contain spaces, newlines or special characters.")
    if option == b"LIB-NAME":
        call.session.library = value
    else:
        call.session.library_version = value
    return OK


def _no_evict(_: "Call", words: list[bytes]) -> Any:
    if words[2].upper() not in (b"ON", b"OFF"):
        raise Refusal(SYNTAX)
    return OK


# --- CLIENT TRACKING ------------------------------------------------------------------------------


def _tracking(call: "Call", words: list[bytes]) -> Any:
    session = call.session
    shared = session.shared
    wanted = Tracking()
    prefixes: list[bytes] = []
    options = iter(words[3:])
    for option in options:
        match option.upper():
            case b"BCAST":
                wanted.broadcast = True
            case b"OPTIN":
                wanted.opt_in = True
            case b"OPTOUT":
                wanted.opt_out = True
            case b"NOLOOP":
                wanted.no_loop = True
            case b"PREFIX" if (prefix := next(options, None)) is not None:
                prefixes.append(prefix)
            case b"REDIRECT" if (other := next(options, None)) is not None:
                wanted.redirect = number_of(other)
                if wanted.redirect not in shared.sessions:
                    raise Refusal("ERR The client ID you want redirect to does not exist")
            case _:
                raise Refusal(SYNTAX)
    switch = words[2].upper()
    if switch == b"OFF":
        session.tracking = None
        shared.tracker.end(session)
        shared.follow_if_needed()
        return OK
    if switch != b"ON":
        raise Refusal(SYNTAX)
    _check_tracking(session.tracking, wanted, prefixes)
    before = () if session.tracking is None else session.tracking.prefixes
    wanted.prefixes = tuple(dict.fromkeys((*before, *prefixes)))
    shared.follower.follow()
    session.identity = call.identity
    session.tracking = wanted
    shared.tracker.begin(session, wanted)
    return OK


def _check_tracking(before: Tracking | None, wanted: Tracking, prefixes: list[bytes]) -> None:
    if prefixes and not wanted.broadcast:
        raise Refusal("ERR PREFIX option requires BCAST mode to be enabled")
    if before is not None and before.broadcast != wanted.broadcast:
        raise Refusal(
            "ERR You can't switch BCAST mode on/off before disabling tracking for this client, and"
            " then re-enabling it with a different mode."
        )
    if wanted.broadcast and (wanted.opt_in or wanted.opt_out):
        raise Refusal("ERR OPTIN and OPTOUT are not compatible with BCAST")
    if wanted.opt_in and wanted.opt_out:
        raise Refusal("ERR You can't use both OPTIN and OPTOUT")
    everything = [*prefixes, *(() if before is None else before.prefixes)]
    for at, prefix in enumerate(prefixes):
        for other in everything[at + 1 :]:
            if prefix != other and (prefix.startswith(other) or other.startswith(prefix)):
                raise Refusal(
                    f"ERR Prefix '{name_of(prefix)}' overlaps with an existing prefix"
                    f" '{name_of(other)}'. Prefixes for a single client must not overlap."
                )


def _caching(call: "Call", words: list[bytes]) -> Any:
    tracking, answer = call.session.tracking, words[2].upper()
    if tracking is None:
        raise Refusal(
            "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN"
            " or OPTOUT mode enabled"
        )
    if answer == b"YES":
        if not tracking.opt_in:
            raise Refusal(
                "ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode."
            )
        tracking.caching = True
    elif answer == b"NO":
        if not tracking.opt_out:
            raise Refusal(
                "ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode."
            )
        tracking.caching = False
    else:
        raise Refusal(SYNTAX)
    return OK


def _trackinginfo(call: "Call", _: list[bytes]) -> dict[str, Any]:
    tracking = call.session.tracking
    if tracking is None:
        return {"flags": ["off"], "redirect": -1, "prefixes": []}
    flags = ["on"]
    for flag, is_set in (
        ("bcast", tracking.broadcast),
        ("optin", tracking.opt_in),
        ("optout", tracking.opt_out),
        ("noloop", tracking.no_loop),
        ("caching-yes", tracking.caching is True),
        ("caching-no", tracking.caching is False),
    ):
        if is_set:
            flags.append(flag)
    return {"flags": flags, "redirect": tracking.redirect, "prefixes": list(tracking.prefixes)}


def _getredir(call: "Call", _: list[bytes]) -> int:
    tracking = call.session.tracking
    return -1 if tracking is None else tracking.redirect


#: By name: least and most words, and what carries it out.
_CLIENT: Final[dict[str, tuple[int, int, Any]]] = {
    "id": (2, 2, _id),
    "info": (2, 2, _info),
    "list": (2, 1000, _list),
    "kill": (3, 100, _kill),
    "setname": (3, 3, _setname),
    "getname": (2, 2, _getname),
    "setinfo": (4, 4, _setinfo),
    "no-evict": (3, 3, _no_evict),
    "no-touch": (3, 3, _no_evict),
    "tracking": (3, 100_000, _tracking),
    "caching": (3, 3, _caching),
    "trackinginfo": (2, 2, _trackinginfo),
    "getredir": (2, 2, _getredir),
}
SUBCOMMANDS: Final = tuple(_CLIENT)
