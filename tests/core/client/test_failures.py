"""What the clients make of nodes that refuse, fail, vanish, stall or are none."""

import itertools

import pytest

from nkv_core import errors
from nkv_core.client import AsyncClient, Client, Put
from nkv_core.client.failures import problem
from nkv_core.errors import (
    ConditionFailed,
    DeadlineExceeded,
    InvalidKey,
    NkvError,
    NotFound,
    OtherHistory,
    OutcomeUnknown,
    Overloaded,
    SettingsError,
    Unreachable,
)

ITEM = {
    "ETag": '"0123456789abcdef-7"',
    "Nkv_Modified": "2026-01-31T12:00:00.250Z+3",
}


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [ConditionFailed, OtherHistory, Overloaded, InvalidKey],
)
def test_a_problem_document_is_raised_as_its_error(call, canned, canned_reply, kind):
    body = b'{"type":"about:blank","code":"%s","detail":"so"}' % kind.code.encode()
    canned.answer = lambda asked: canned_reply(kind.status, body)
    with pytest.raises(kind, match="so") as raised:
        call(canned.url, "put", "a", b"1")
    assert type(raised.value) is kind


def test_every_code_of_nkv_comes_back_as_its_own_class():
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, NkvError) and kind is not errors.Rejected:
            error = problem(kind.status, b'{"code":"%s","detail":"d"}' % kind.code.encode())
            assert type(error) is kind


def test_a_code_of_a_later_release_is_kept(call, canned, canned_reply):
    canned.answer = lambda asked: canned_reply(418, b'{"code":"teapot","detail":"short and stout"}')
    with pytest.raises(NkvError, match="short and stout") as raised:
        call(canned.url, "get", "a")
    assert (raised.value.code, raised.value.status) == ("teapot", 418)


def test_a_missing_record_is_none_and_a_missing_path_is_an_error(call, canned, canned_reply):
    canned.answer = lambda asked: canned_reply(404, b'{"code":"not_found"}')
    assert call(canned.url, "get", "a") is None
    assert call(canned.url, "delete", "a") is False
    canned.answer = lambda asked: canned_reply(404, b'{"code":"no_handler"}')
    with pytest.raises(errors.NoHandler):
        call(canned.url, "get", "a")
    with pytest.raises(errors.NoHandler):
        call(canned.url, "delete", "a")


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"hello", {}),
        (200, b"hello", {"ETag": "W", **ITEM}),
        (200, b"hello", {"ETag": '"v"', "Nkv_Modified": "yesterday"}),
        (200, b"hello", {**ITEM, "Nkv_Expires": "tomorrow"}),
        (404, b"<html>not here</html>", {}),
        (404, b"\xff\xfe", {}),
        (500, b"", {}),
        (302, b"", {"Location": "http://192.0.2.1/"}),
    ],
)
def test_an_answer_that_is_none_of_a_node_is_told(call, canned, canned_reply, answer):
    status, body, headers = answer
    headers = {name: value for name, value in headers.items() if name != "ETag" or value != "W"}
    canned.answer = lambda asked: canned_reply(status, body, **headers)
    if headers == ITEM:
        headers.pop("ETag")
    with pytest.raises(NkvError) as raised:
        call(canned.url, "get", "a")
    assert raised.value.code == "unexpected_reply"
    assert len(canned.asked) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b'{"records":[{"key":"a"}]}', b'{"records":1}', b"{"])
def test_a_page_or_batch_that_cannot_be_read_is_told(call, canned, canned_reply, body):
    canned.answer = lambda asked: canned_reply(200, body)
    for method, args in (("scan", ()), ("batch", ([Put("a", b"1")],))):
        with pytest.raises(NkvError) as raised:
            call(canned.url, method, *args)
        assert raised.value.code == "unexpected_reply"


def test_a_wrong_number_of_results_is_told(call, canned, canned_reply):
    canned.answer = lambda asked: canned_reply(200, b'{"results":[]}')
    with pytest.raises(NkvError) as raised:
        call(canned.url, "batch", [Put("a", b"1")])
    assert raised.value.code == "unexpected_reply"


def test_a_long_detail_is_cut(call, canned, canned_reply):
    body = b'{"code":"internal","detail":"%s"}' % (b"x" * 100_000)
    canned.answer = lambda asked: canned_reply(500, body)
    with pytest.raises(NkvError) as raised:
        call(canned.url, "get", "a")
    assert len(raised.value.detail) == 2000


# --- no answer ------------------------------------------------------------------------------------


def test_a_node_that_is_not_there_is_unreachable(call, closed_url):
    for method, args in (("get", ("a",)), ("put", ("a", b"1"))):
        with pytest.raises(Unreachable, match=closed_url):
            call(closed_url, method, *args)


def test_a_lost_write_has_an_unknown_outcome_and_is_not_repeated(call, canned):
    canned.answer = lambda asked: None
    for method, args in (("put", ("a", b"1")), ("delete", ("a",)), ("batch", ([Put("a", b"")],))):
        canned.asked.clear()
        with pytest.raises(OutcomeUnknown, match="write"):
            call(canned.url, method, *args)
        assert len(canned.asked) == 1


def test_a_lost_read_is_repeated_some_times(call, canned, canned_reply):
    answers = iter([None, canned_reply(200, b"hello", **ITEM)])
    canned.answer = lambda asked: next(answers)
    assert call(canned.url, "get", "a").value == b"hello"
    canned.answer = lambda asked: None
    canned.asked.clear()
    with pytest.raises(Unreachable, match="lost"):
        call(canned.url, "get", "a")
    assert len(canned.asked) == 3


def test_half_a_reply_is_a_lost_connection(call, canned, canned_reply):
    def half(asked):
        yield canned_reply(200, b"hello world", **ITEM)[:-3]
        raise ConnectionError

    canned.answer = half
    canned._server.handle_error = lambda *args: None
    with pytest.raises(Unreachable, match="lost"):
        call(canned.url, "get", "a")


def test_rubbish_is_not_taken_for_an_answer(call, canned):
    canned.answer = lambda asked: b"SSH-2.0-OpenSSH_9.2\r\n\r\n"
    with pytest.raises(NkvError):
        call(canned.url, "get", "a")
    with pytest.raises(OutcomeUnknown):
        call(canned.url, "put", "a", b"1")


def test_a_node_that_stalls_is_given_up_at_the_deadline(call, canned):
    def stall(asked):
        canned.released.wait(30)

    canned.answer = stall
    with pytest.raises(DeadlineExceeded):
        call(canned.url, "get", "a", timeout=0.1)
    with pytest.raises(DeadlineExceeded, match="may still"):
        call(canned.url, "put", "a", b"1", client={"timeout": 0.1})
    assert len(canned.asked) == 2


def test_a_reply_in_drops_does_not_outlast_the_deadline(call, canned, canned_reply):
    def drops(asked):
        yield canned_reply(200, b"x" * 10_000, **ITEM)[:-10_000]
        while not canned.released.wait(0.02):
            yield b"x"

    canned.answer = drops
    with pytest.raises(DeadlineExceeded):
        call(canned.url, "get", "a", timeout=0.3)


def test_a_reply_without_end_is_not_read_to_the_end(call, canned, canned_reply):
    def endless(asked):
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        while not canned.released.is_set():
            yield b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

    canned.answer = endless
    with pytest.raises(NkvError) as raised:
        call(canned.url, "get", "a", client={"max_reply": 1_000_000})
    assert raised.value.code == "reply_too_long"
    with pytest.raises(OutcomeUnknown):
        call(canned.url, "put", "a", b"1", client={"max_reply": 1_000_000})


def test_a_page_that_is_too_long_is_asked_for_in_smaller_ones(call, canned, canned_reply):
    def page(asked):
        limit = int(
            dict(part.split("=") for part in asked.target.split("?")[1].split("&"))["limit"]
        )
        if limit > 1:
            return canned_reply(200, b" " * 2000)
        body = (
            b'{"records":[{"key":"a","value":"1","version":"v-1",'
            b'"modified":"2026-01-31T12:00:00.250Z+3"}],"after":null}'
        )
        return canned_reply(200, body)

    canned.answer = page
    (item,) = call(canned.url, "scan", client={"max_reply": 1000})
    assert item.value == b"1"
    canned.answer = lambda asked: canned_reply(200, b" " * 2000)
    with pytest.raises(NkvError) as raised:
        call(canned.url, "scan", client={"max_reply": 1000})
    assert raised.value.code == "reply_too_long"


# --- what is sent ---------------------------------------------------------------------------------


def test_a_token_goes_to_the_node_and_nowhere_else(call, canned, canned_reply, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    canned.answer = lambda asked: canned_reply(200, b"", **ITEM)
    call(canned.url, "get", "a", client={"token": "secret"})
    assert canned.asked[0].headers["authorization"] == "Bearer secret"
    assert "authorization" not in repr(canned.asked[0].target)


def test_a_key_is_one_segment_of_the_path_whatever_is_in_it(call, canned, canned_reply):
    canned.answer = lambda asked: canned_reply(200, b"", **ITEM)
    for key in ("a/b", "a b", "a%2Fb", "a?b#c", "ü.ö", "...", "*", "a\\b", "%", "a;b"):
        canned.asked.clear()
        assert call(canned.url, "get", key).key == key
        (asked,) = canned.asked
        assert asked.target.startswith("/v1/kv/")
        assert asked.target.count("/") == 3
        from urllib.parse import unquote

        assert unquote(asked.target.removeprefix("/v1/kv/")) == key


def test_a_path_before_that_of_nkv_is_kept(call, canned, canned_reply):
    canned.answer = lambda asked: canned_reply(200, b"", **ITEM)
    call(canned.url + "/behind/", "get", "a")
    assert canned.asked[0].target == "/behind/v1/kv/a"


@pytest.mark.parametrize("kind", [AsyncClient, Client])
@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8080", "ftp://host", "http://", "http://h?a=1", "http://u:p@h", "http://h:x"],
)
def test_an_address_that_is_none_is_refused(kind, url):
    with pytest.raises(SettingsError) as raised:
        kind(url)
    assert ":p@" not in str(raised.value)


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "ü"])
def test_a_token_that_is_none_is_refused_and_not_repeated(token):
    with pytest.raises(SettingsError) as raised:
        Client("http://h", token=token)
    assert not token or token not in str(raised.value)


@pytest.mark.parametrize(
    ("args", "options", "kind"),
    [
        (("", b""), {}, InvalidKey),
        (("..", b""), {}, InvalidKey),
        (("a", b""), {"ttl": 0}, errors.InvalidExpiry),
        (("a", b""), {"ttl": float("nan")}, errors.InvalidExpiry),
        (("a", b""), {"ttl": 1, "expires": 2}, errors.ConflictingConditions),
        (("a", b""), {"if_version": "v", "if_absent": True}, errors.ConflictingConditions),
        (("a", b""), {"if_version": 'v"\r\n'}, errors.InvalidVersion),
        (("a", b""), {"if_version": ""}, errors.InvalidVersion),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_sent(
    call, closed_url, args, options, kind
):
    with pytest.raises(kind):
        call(closed_url, "put", *args, **options)


def test_an_update_gives_up_after_so_many_attempts(call, canned, canned_reply):
    def answer(asked):
        if asked.method == "GET":
            return canned_reply(200, b"1", **ITEM)
        return canned_reply(412, b'{"code":"condition_failed"}')

    canned.answer = answer
    count = itertools.count()
    with pytest.raises(ConditionFailed, match="3 attempts"):
        call(canned.url, "update", "a", lambda value: b"%d" % next(count), attempts=3)
    assert next(count) == 3


def test_an_update_has_a_deadline_of_its_own(call, canned, canned_reply):
    def answer(asked):
        if asked.method == "GET":
            return canned_reply(200, b"1", **ITEM)
        return canned_reply(412, b'{"code":"condition_failed"}')

    canned.answer = answer
    with pytest.raises(DeadlineExceeded):
        call(canned.url, "update", "a", lambda value: b"2", attempts=10**9, timeout=0.3)


def test_what_compute_raises_comes_out(call, canned, canned_reply):
    canned.answer = lambda asked: canned_reply(404, b'{"code":"not_found"}')

    def compute(value):
        assert value is None
        raise NotFound("nothing to add to")

    with pytest.raises(NotFound, match="nothing to add to"):
        call(canned.url, "update", "a", compute)
