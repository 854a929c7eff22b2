"""What is remembered of simple requests and their answers, and that nothing of it is a mistake."""

import logging
from types import MappingProxyType
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.contracts.handlers import Reply, Request
from nkv_core.errors import NotFound
from nkv_transport_http.app import App, params
from nkv_transport_http.browsers import Hosts
from nkv_transport_http.replies import answer
from nkv_transport_http.settings import HttpSettings
from nkv_transport_http.simple import Simple

pytestmark = pytest.mark.anyio

GET = b"GET /v1/kv/a HTTP/1.1\r\nHost: node\r\n%b\r\n"
PUT = b"PUT /v1/kv/a HTTP/1.1\r\nHost: node\r\n%b\r\n"
REQUEST = Request(transport="http", method="GET", path="/get", peer="")
OK = Reply(200, MappingProxyType({"X-A": "1"}), b"ok")
SAME = Reply(200, MappingProxyType({"X-A": "1"}), b"okay")
CHANGING = Reply(200, {"X-A": "1"}, b"ok")


@pytest.fixture
async def simple():
    app = App(None, HttpSettings(), Hosts(("node",)), logging.getLogger())
    return Simple(app)


async def test_a_constant_is_answered_alike_each_time_and_no_other_in_its_place(simple):
    def sent(outcome, error=None):
        head, _, body = simple.response(REQUEST, outcome, error, None).partition(b"\r\n\r\n")
        first, *fields = head.split(b"\r\n")
        return first, [field for field in fields if not field.startswith(b"date: ")], body

    for outcome in (None, OK, OK, None, SAME, OK, b"", SAME, SAME, None, OK):
        first, fields, body = sent(outcome)
        whole = answer(outcome)
        assert (first, body) == (b"HTTP/1.1 200 ", whole.body)
        assert fields == [b"%b: %b" % field for field in whole.headers]
    assert sent(OK, NotFound())[0] == b"HTTP/1.1 404 "
    assert sent(None, NotFound())[0] == b"HTTP/1.1 404 "
    simple._app.streams.ending = True
    assert b"connection: close" in sent(OK)[1]


async def test_a_reply_that_can_change_is_made_anew(simple):
    headers = dict(CHANGING.headers)
    reply = Reply(200, headers, b"ok")
    assert b"x-a: 1\r\n" in simple.response(REQUEST, reply, None, None)
    headers["X-A"] = "2"
    assert b"x-a: 2\r\n" in simple.response(REQUEST, reply, None, None)


async def test_fields_that_come_again_are_checked_for_each_address_and_method(simple):
    def is_simple(data, local="10.0.0.1"):
        return simple.request(data, 0, "peer", local) is not None

    other = b"GET /v1/kv/a HTTP/1.1\r\nHost: 10.0.0.2\r\n\r\n"
    for _ in range(2):
        assert is_simple(GET % b"")
        # The address at which a request came in is a name of the node; another one is not.
        assert is_simple(other, "10.0.0.2")
        assert not is_simple(other, "10.0.0.1")
        page = b"Origin: http://elsewhere\r\n"
        assert is_simple(GET % page)
        assert not is_simple(PUT % page)
        assert is_simple(PUT % b"Origin: http://node\r\n")
        found, _ = simple.request(GET % b"Authorization: Bearer one\r\n", 0, "peer", "")
        assert found.credential == "one"
        found, _ = simple.request(GET % b"", 0, "peer", "")
        assert found.credential is None


@given(st.text(st.sampled_from("ab=&;?/:"), max_size=20))
def test_a_query_without_escapes_is_read_as_any_other(query):
    expected = dict(reversed(parse_qsl(query, keep_blank_values=True)))
    assert dict(params(query.encode())) == expected
