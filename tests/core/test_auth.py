"""Auth: the file of tokens, who comes with which, and what a guarded keyspace refuses."""

import hashlib
import hmac
import os
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.auth import NOBODY, Auth, GuardedKeyspace, new_token
from nkv_core.contracts.identity import Identity, Right
from nkv_core.contracts.keyspace import (
    Check,
    Clear,
    Delete,
    Keyspace,
    Options,
    Page,
    Presence,
    Put,
    Touch,
    Written,
)
from nkv_core.errors import Forbidden, InvalidKey, SettingsError, Unauthenticated
from nkv_core.keys import EVERYTHING, Pattern
from nkv_core.records import Record, Token


@pytest.fixture
def tokens(tmp_path):
    """Writes a file of tokens."""

    def write(text, mode=0o600):
        path = tmp_path / "tokens.toml"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


# --- tokens ---------------------------------------------------------------------------------------


def test_a_new_token_is_known_once_its_line_is_in_the_file(tokens):
    rights = (Right("service.", read=True, write=True), Right("log.", read=False, write=True))
    token, line = new_token("alice", rights)
    other, other_line = new_token("bob", (Right(""),))
    auth = Auth.load(tokens(f"{line}\n{other_line}\n"))
    assert auth.identify(token) == Identity("alice", rights)
    assert auth.identify(other) == Identity("bob", (Right("", read=True, write=False),))
    assert token not in line
    assert hashlib.sha256(token.encode()).hexdigest() in line
    assert token != other
    assert len(token) >= 43  # 256 bits in base64


@given(
    name=st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20),
    prefixes=st.lists(
        st.text(st.characters(exclude_categories=["C"]), max_size=20), unique=True, max_size=4
    ),
)
def test_any_name_and_prefix_survive_the_file(name, prefixes):
    if not name.isprintable():
        return
    _, line = new_token(name, [Right(prefix, write=True) for prefix in prefixes])
    ((found, table),) = tomllib.loads(line).items()
    assert found == name
    assert table["read"] == table["write"] == prefixes


def test_names_and_prefixes_that_cannot_be_are_refused():
    for name in ("", "a\nb"):
        with pytest.raises(SettingsError):
            new_token(name, ())
    with pytest.raises(InvalidKey):
        new_token("alice", (Right("a\x00"),))


@pytest.mark.parametrize("credential", [None, "", "wrong", "ключ", "\udc80"])
def test_what_is_nobodys_token_is_refused_without_repeating_it(tokens, credential):
    auth = Auth.load(tokens(new_token("alice", (Right(""),))[1]))
    with pytest.raises(Unauthenticated) as refused:
        auth.identify(credential)
    assert not credential or credential not in refused.value.detail


def test_every_entry_is_compared_in_constant_time(tokens, monkeypatch):
    made = [new_token(f"user{number}", (Right(""),)) for number in range(5)]
    auth = Auth.load(tokens("\n".join(line for _, line in made)))
    compared = []

    def compare(one, other):
        compared.append(one == other)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert auth.identify(made[0][0]).name == "user0"
    assert compared == [True, False, False, False, False]


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has none"),
        ("alice = ", "cannot be read"),
        ("\udcff", "cannot be read"),
        ("alice = 1", "alice"),
        ("alice = { read = [''] }", "sha256"),
        ("alice = { sha256 = 'abc' }", "64 hexadecimal digits"),
        (f"alice = {{ sha256 = '{DIGEST}', reads = [''] }}", "reads"),
        (f"alice = {{ sha256 = '{DIGEST}', read = 'a' }}", "read"),
        (f"alice = {{ sha256 = '{DIGEST}', read = ['\\u0000'] }}".replace("'", '"'), "alice"),
        (f"a = {{ sha256 = '{DIGEST}' }}\nb = {{ sha256 = '{DIGEST}' }}", "the same token"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(tmp_path, text, says):
    path = tmp_path / "tokens.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    path.chmod(0o600)
    with pytest.raises(SettingsError, match=says) as refused:
        Auth.load(path)
    assert str(path) in refused.value.detail


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_change_is_refused(tokens, mode):
    path = tokens(new_token("alice", (Right(""),))[1], mode)
    with pytest.raises(SettingsError, match="chmod go-w"):
        Auth.load(path)


def test_a_file_that_others_may_read_holds_only_hashes_and_is_taken(tokens):
    token, line = new_token("alice", (Right(""),))
    assert Auth.load(tokens(line, 0o644)).identify(token).name == "alice"


def test_what_is_no_regular_file_is_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path, tmp_path / "missing"):
        with pytest.raises(SettingsError, match=path.name):
            Auth.load(path)


def test_a_file_without_end_is_refused(tokens, monkeypatch):
    monkeypatch.setattr("nkv_core.auth.MAX_FILE_BYTES", 10)
    with pytest.raises(SettingsError, match="larger than 10 bytes"):
        Auth.load(tokens("# a comment of some length"))


# --- the guard ------------------------------------------------------------------------------------

BEFORE = Record("a.x", b"before", 1, 1, 1)
AFTER = Record("a.x", b"after", 2, 2, 1)


class Recorded:
    """A keyspace that notes what reaches it."""

    capabilities = "capabilities"
    history = "0" * 16
    token = Token("0" * 16, 7)

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        async def call(*given, **named):
            self.calls.append((name, given, named))
            if name == "batch":
                return [Written(2, AFTER, BEFORE)]
            return {"get": BEFORE, "count": 3, "scan": Page([], None)}.get(
                name, Written(2, AFTER, BEFORE)
            )

        return call

    def tail(self, listener):
        self.calls.append(("tail", (listener,), {}))
        return lambda: None


def guarded(*rights):
    inner = Recorded()
    return GuardedKeyspace(inner, Identity("alice", rights)), inner


READ = Right("a.", read=True, write=False)
WRITE = Right("a.", read=False, write=True)
ALL = Right("", read=True, write=True)
#: What is done, the right that it needs, and on what.
NEEDS = [
    (lambda k: k.get("a.x"), "read", "a.x"),
    (lambda k: k.scan(Pattern("a.*")), "read", "a."),
    (lambda k: k.scan(Pattern("a.x")), "read", "a.x"),
    (lambda k: k.scan(Pattern("a.*.c")), "read", "a."),
    (lambda k: k.changes(Token("0" * 16, 0), Pattern("a.*")), "read", "a."),
    (lambda k: k.put("a.x", b""), "write", "a.x"),
    (lambda k: k.delete("a.x"), "write", "a.x"),
    (lambda k: k.touch("a.x", None), "write", "a.x"),
    (lambda k: k.clear("a.b"), "write", "a.b"),
    (lambda k: k.batch([Put("a.x", b"")]), "write", "a.x"),
    (lambda k: k.batch([Delete("a.x")]), "write", "a.x"),
    (lambda k: k.batch([Touch("a.x", None)]), "write", "a.x"),
    (lambda k: k.batch([Clear("a.b")]), "write", "a.b"),
    (lambda k: k.batch([], [Check("a.x", Presence.ABSENT)]), "read", "a.x"),
]
NEEDS_ALL = [
    (lambda k: k.count(), "read"),
    (lambda k: k.scan(EVERYTHING), "read"),
    (lambda k: k.scan(Pattern("*.a")), "read"),
    (lambda k: k.changes(Token("0" * 16, 0)), "read"),
    (lambda k: k.clear(), "write"),
    (lambda k: k.batch([Clear("")]), "write"),
    (lambda k: k.apply_foreign([]), "write"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("act", "right", "prefix"), NEEDS)
async def test_what_is_done_to_keys_needs_the_right_for_them(act, right, prefix):
    granted, lacking = (READ, WRITE) if right == "read" else (WRITE, READ)
    allowed, inner = guarded(Right("b.", write=True), granted)
    await act(allowed)
    assert len(inner.calls) == 1
    refusing, inner = guarded(lacking, Right("b.", write=True))
    with pytest.raises(Forbidden) as refused:
        await act(refusing)
    assert inner.calls == []
    assert f"right to {right} the key or prefix {prefix!r}" in refused.value.detail


@pytest.mark.anyio
@pytest.mark.parametrize(("act", "right"), NEEDS_ALL)
async def test_what_concerns_everything_needs_the_right_for_everything(act, right):
    allowed, inner = guarded(ALL)
    await act(allowed)
    assert len(inner.calls) == 1
    refusing, inner = guarded(Right("a", write=True))
    with pytest.raises(Forbidden, match=f"right to {right} all keys"):
        await act(refusing)
    assert inner.calls == []


def test_following_all_commits_needs_the_right_to_read_everything():
    allowed, inner = guarded(Right(""))
    allowed.tail(print)()
    assert inner.calls == [("tail", (print,), {})]
    with pytest.raises(Forbidden):
        guarded(READ, WRITE)[0].tail(print)


@pytest.mark.anyio
async def test_nobody_may_do_nothing_but_ask_for_what_is_no_secret():
    keyspace = GuardedKeyspace(Recorded(), NOBODY)
    for act, *_ in (*NEEDS, *NEEDS_ALL):
        with pytest.raises(Forbidden):
            await act(keyspace)
    assert keyspace.capabilities == "capabilities"
    assert keyspace.history == "0" * 16
    assert keyspace.token == Token("0" * 16, 7)


@pytest.mark.anyio
async def test_one_operation_of_a_batch_without_the_right_stops_all_of_it():
    keyspace, inner = guarded(WRITE)
    with pytest.raises(Forbidden):
        await keyspace.batch([Put("a.x", b""), Put("b.x", b"")])
    assert inner.calls == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    "write",
    [
        lambda k: k.put("a.x", b"after"),
        lambda k: k.touch("a.x", None),
        lambda k: k.delete("a.x"),
        lambda k: k.batch([Put("a.x", b"after")]),
    ],
)
async def test_who_may_not_read_is_not_told_values_by_writing(write):
    blind, _ = guarded(WRITE)
    written = await write(blind)
    written = written[0] if isinstance(written, list) else written
    assert (written.previous.value, written.record.value) == (b"", b"")
    assert (written.previous.revision, written.record.revision) == (1, 2)
    seeing, _ = guarded(READ, WRITE)
    written = await write(seeing)
    written = written[0] if isinstance(written, list) else written
    assert (written.previous.value, written.record.value) == (b"before", b"after")


@pytest.mark.anyio
async def test_arguments_are_passed_on_as_they_are():
    keyspace, inner = guarded(ALL)
    options = Options(deadline=1)
    rest = {"expect": Presence.ABSENT, "cause": "c", "options": options}
    await keyspace.put("k", b"v", expires=5, **rest)
    await keyspace.delete("k", **rest)
    await keyspace.touch("k", 5, **rest)
    await keyspace.clear("k", cause="c", options=options)
    await keyspace.scan(EVERYTHING, after="k", limit=3, options=options)
    await keyspace.get("k", options)
    assert inner.calls == [
        ("put", ("k", b"v"), {"expires": 5, **rest}),
        ("delete", ("k",), rest),
        ("touch", ("k", 5), rest),
        ("clear", ("k",), {"cause": "c", "options": options}),
        ("scan", (EVERYTHING,), {"after": "k", "limit": 3, "options": options}),
        ("get", ("k", options), {}),
    ]


def test_the_guard_has_every_method_of_a_keyspace():
    public = {name for name in vars(Keyspace) if not name.startswith("_")}
    assert public <= set(vars(GuardedKeyspace))
