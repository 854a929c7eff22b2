"""Beside Redis' own server: the same commands give the same replies."""

# ruff: noqa: E501  # tables of commands

import hiredis
from hypothesis import given, settings
from hypothesis import strategies as st

KEYS = [b"a", b"b", b"c.d", b"ba"]
keys = st.sampled_from(KEYS)
values = st.sampled_from(
    [
        b"",
        b"1",
        b"-7",
        b"x y",
        b"05",
        b" 5",
        b"9223372036854775807",
        b"-9223372036854775808",
        b"\x00\xff\r\n",
        b"99999999999999999999",
    ]
)
numbers = st.sampled_from(
    [
        b"0",
        b"1",
        b"-1",
        b"2",
        b"-3",
        b"100",
        b"x",
        b"",
        b"+1",
        b"9223372036854775807",
        b"-9223372036854775808",
        b"9223372036854775808",
        b"1.5",
    ]
)
#: Far enough from now that no reply depends on how fast the two are, and soon enough to be kept.
seconds = st.sampled_from([b"1000", b"100000", b"0", b"-1", b"x", b"9223372036854775807"])
moments = st.sampled_from([b"4000000000", b"5000000000", b"1", b"0", b"-5", b"x"])
patterns = st.sampled_from(
    [b"*", b"a*", b"?", b"[ab]*", b"c.*", b"b", b"[^a]", b"\\a", b"nope", b""]
)


def command(*parts):
    """A command of words, strategies of words, and lists of them."""
    fixed = [st.just([p]) if isinstance(p, bytes) else p for p in parts]
    return st.tuples(*(f.map(lambda v: v if isinstance(v, list) else [v]) for f in fixed)).map(
        lambda words: [word for some in words for word in some]
    )


expiry = st.one_of(
    st.tuples(st.sampled_from([b"EX", b"PX"]), st.sampled_from([b"100000", b"1000000"])),
    st.tuples(st.just(b"EX"), seconds),
    st.tuples(st.sampled_from([b"EXAT"]), moments),
    st.tuples(st.just(b"KEEPTTL")),
    st.tuples(st.just(b"ex")),
)
set_options = st.lists(
    st.one_of(expiry, st.tuples(st.sampled_from([b"NX", b"XX", b"GET", b"get", b"BAD"]))),
    max_size=3,
).map(lambda options: [word for option in options for word in option])
limits = st.lists(st.sampled_from([b"NX", b"XX", b"GT", b"LT", b"gt", b"NO"]), max_size=2)
pairs = st.lists(st.tuples(keys, values), min_size=1, max_size=3).map(
    lambda pairs: [word for pair in pairs for word in pair]
)
several = st.lists(keys, min_size=1, max_size=3)

data = st.one_of(
    command(b"GET", keys),
    command(b"SET", keys, values),
    command(b"SET", keys, values, set_options),
    command(b"SETNX", keys, values),
    command(st.sampled_from([b"SETEX", b"PSETEX"]), keys, seconds, values),
    command(b"GETSET", keys, values),
    command(b"GETDEL", keys),
    command(b"GETEX", keys, expiry.map(list)),
    command(b"GETEX", keys, st.sampled_from([[], [b"PERSIST"], [b"PERSIST", b"EX", b"1"]])),
    command(b"MGET", several),
    command(st.sampled_from([b"MSET", b"MSETNX"]), pairs),
    command(st.sampled_from([b"DEL", b"UNLINK", b"EXISTS", b"TOUCH"]), several),
    command(st.sampled_from([b"INCR", b"DECR"]), keys),
    command(st.sampled_from([b"INCRBY", b"DECRBY"]), keys, numbers),
    command(b"APPEND", keys, values),
    command(b"STRLEN", keys),
    command(st.sampled_from([b"GETRANGE", b"SUBSTR"]), keys, numbers, numbers),
    command(b"SETRANGE", keys, st.sampled_from([b"0", b"1", b"5", b"-1", b"x"]), values),
    command(st.sampled_from([b"TTL", b"EXPIRETIME", b"TYPE", b"PERSIST"]), keys),
    command(st.sampled_from([b"EXPIRE", b"expire"]), keys, seconds, limits),
    command(b"PEXPIRE", keys, st.sampled_from([b"100000000", b"-1", b"y"]), limits),
    command(b"EXPIREAT", keys, moments, limits),
    command(b"PEXPIREAT", keys, st.sampled_from([b"4000000000000", b"1"]), limits),
    command(b"PEXPIRETIME", keys),
    command(st.sampled_from([b"RENAME", b"RENAMENX"]), keys, keys),
    command(st.sampled_from([b"FLUSHDB", b"FLUSHALL"]), st.sampled_from([[], [b"ASYNC"], [b"X"]])),
)
others = st.one_of(
    command(b"KEYS", patterns),
    command(b"DBSIZE"),
    command(b"SCAN", b"0", b"COUNT", b"1000", b"MATCH", patterns),
    command(b"SCAN", b"x"),
    command(b"SCAN", b"0", st.sampled_from([[b"TYPE", b"list"], [b"COUNT"], [b"COUNT", b"0"]])),
    command(b"PING", st.lists(values, max_size=2)),
    command(b"ECHO", st.lists(values, max_size=2)),
    command(b"SELECT", st.sampled_from([b"0", b"x"])),
    command(b"PUBLISH", keys, values),
    command(b"NOPE", st.lists(values, max_size=3)),
    command(b"CLIENT", st.sampled_from([b"GETNAME", b"NOPE", b"SETNAME"])),
    command(b"CLIENT", b"SETNAME", st.sampled_from([b"me", b"a b", b""])),
    command(b"CLIENT", b"TRACKING", st.lists(
        st.sampled_from([b"ON", b"OFF", b"BCAST", b"OPTIN", b"OPTOUT", b"NOLOOP", b"PREFIX", b"a"]),
        max_size=4,
    )),
    command(b"CLIENT", b"CACHING", st.sampled_from([b"YES", b"NO", b"x"])),
    command(b"CLIENT", b"TRACKINGINFO"),
    command(st.sampled_from([b"UNSUBSCRIBE", b"PUNSUBSCRIBE"]), keys),
    command(st.sampled_from([b"GET", b"SET", b"MSET", b"INCRBY", b"EXEC", b"WATCH", b"RENAME"])),
)  # fmt: skip
control = st.one_of(
    command(b"MULTI"),
    command(b"EXEC"),
    command(b"EXEC"),
    command(b"DISCARD"),
    command(b"WATCH", several),
    command(b"UNWATCH"),
)
#: What a transaction of ours does not hold.
ALONE = (b"KEYS", b"DBSIZE", b"SCAN", b"UNSUBSCRIBE", b"PUNSUBSCRIBE")


def plain(reply, words):
    """A reply without what may differ: the order of keys."""
    name = words[0].upper()
    if isinstance(reply, hiredis.ReplyError):
        return str(reply)
    if name == b"KEYS":
        return sorted(reply)
    if name == b"SCAN":
        return sorted(reply[1])
    if name == b"EXEC" and isinstance(reply, list):
        return [plain(each, [b""]) for each in reply]
    if name == b"TTL" and reply > 0:
        return "soon" if reply < 2_000_000 else round(reply, -3)
    return reply


def relative(words):
    """Whether the reply is a time that depends on when the command was carried out."""
    return words[0] in (b"EXPIRETIME", b"PEXPIRETIME")


def compare(commands, ours, theirs):
    within = False
    for words in commands:
        name = words[0].upper()
        if within and name in ALONE:
            continue
        mine, its = ours.ask(*words), theirs.ask(*words)
        if relative(words) and not within and isinstance(mine, int):
            assert abs(mine - its) <= 60_000, words
        elif within and relative(words):
            assert mine == its == b"QUEUED"
        elif name == b"EXEC" and isinstance(mine, list) and isinstance(its, list):
            close(mine, its, words)
        else:
            assert plain(mine, words) == plain(its, words), words
        if name == b"MULTI":
            within = True
        if name in (b"EXEC", b"DISCARD"):
            within = False


def close(mine, its, words):
    assert len(mine) == len(its), words
    for one, other in zip(mine, its, strict=True):
        if isinstance(one, int) and isinstance(other, int) and one > 1000 and other > 1000:
            assert abs(one - other) <= 60_000 or one == other, words
        else:
            assert plain(one, [b""]) == plain(other, [b""]), words


@settings(max_examples=150)
@given(st.lists(data, max_size=30))
def test_commands_about_records(served_for_hypothesis, commands):
    begin, ours, theirs = served_for_hypothesis
    begin()
    compare(commands, ours, theirs)


@settings(max_examples=150)
@given(st.lists(st.one_of(data, data, others, control), max_size=40))
def test_commands_of_all_kinds(served_for_hypothesis, commands):
    begin, ours, theirs = served_for_hypothesis
    begin()
    compare(commands, ours, theirs)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.one_of(data, control)), max_size=40))
def test_two_clients_and_their_transactions(two_for_hypothesis, commands):
    begin, ours, theirs = two_for_hypothesis
    begin()
    for which, words in commands:
        name = words[0].upper()
        if name in (b"SETEX", b"PSETEX", b"EXPIRETIME", b"PEXPIRETIME", b"TTL", b"GETDEL", b"DEL"):
            continue  # here transactions matter
        if name in (b"UNLINK", b"RENAME", b"RENAMENX", b"FLUSHDB", b"FLUSHALL"):
            continue  # a key that is watched, gone, and not there again: see docs/resp.md
        if name in (b"EXPIRE", b"PEXPIRE", b"EXPIREAT", b"PEXPIREAT", b"GETEX"):
            continue
        if name == b"SET" and len(words) > 3:
            continue
        mine, its = ours[which].ask(*words), theirs[which].ask(*words)
        if name == b"EXEC" and isinstance(mine, list) and isinstance(its, list):
            close(mine, its, words)
        else:
            assert plain(mine, words) == plain(its, words), words


def test_messages_and_notifications_are_the_same(served, peer):
    told = []
    for server in (served, peer):
        listener, writer = server.connect(), server.connect()
        told.append([listener.ask("PSUBSCRIBE", "__key*__:*", "x*")])
        told[-1].append(listener.read())
        told[-1].append(listener.ask("SUBSCRIBE", "xy"))
        for words in (
            ("SET", "a", "1"), ("SET", "a", "1", "EX", "100"), ("SET", "a", "2", "KEEPTTL"),
            ("SETEX", "b", "10", "x"), ("SETNX", "b", "y"), ("SETNX", "c", "y"), ("MSET", "d", "1", "e", "2"),
            ("INCR", "d"), ("DECR", "d"), ("INCRBY", "d", "2"), ("DECRBY", "d", "2"), ("APPEND", "d", "0"),
            ("SETRANGE", "d", "1", "x"), ("GETSET", "d", "1"), ("GETEX", "d", "EX", "100"),
            ("GETEX", "d", "PERSIST"), ("EXPIRE", "d", "100"), ("PERSIST", "d"), ("RENAME", "d", "f"),
            ("GETDEL", "f"), ("DEL", "a", "nope"), ("UNLINK", "b"), ("EXPIRE", "c", "-1"),
            ("MULTI",), ("SET", "m", "1"), ("DEL", "m"), ("EXEC",), ("PUBLISH", "xy", "z"),
            ("SET", "soon", "1", "PX", "20"),
        ):  # fmt: skip
            writer.ask(*words)
        last = []
        while not last or last[-1] != b"soon":  # until `expired` of it is told
            message = listener.read()
            last = message if message[2] == b"__keyevent@0__:expired" else last
            told[-1].append(message)
    assert told[0] == told[1]


def test_what_comes_first_is_answered_first(served, peer):
    script = b"".join(
        [
            b"SET a 1\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"GET a\r\n",
            b'SET "b" "\\x41 c"\r\n',
            b"GET b\r\n",
            b"*-1\r\n",
            b"\r\n",
            b"KEYS a\r\n",
            b"INCR a\r\n",
            b"MULTI\r\nGET a\r\nEXEC\r\n",
            b"QUIT\r\n",
        ]
    )
    answers = []
    for server in (served, peer):
        client = server.connect()
        client.send(script)
        answers.append(client.rest())
    assert answers[0] == answers[1]
