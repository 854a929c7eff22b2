"""Names of hosts, queries and header fields: whatever comes, it is understood or refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.config import convert_section
from nkv_core.contracts.handlers import Reply
from nkv_core.errors import (
    BadRequest,
    ForeignOrigin,
    MisdirectedHost,
    NkvError,
    SettingsError,
)
from nkv_transport_http.app import _headers, params, path_of
from nkv_transport_http.browsers import Hosts, check_origin
from nkv_transport_http.replies import answer, raw_headers
from nkv_transport_http.settings import HttpSettings


@pytest.mark.parametrize(
    ("host", "address", "good"),
    [
        ("[::1]:8080", "::1", True),
        ("[0:0::1]", "::1", True),
        ("[fe80::1%eth0]", "fe80::1", True),
        ("[::1", "::1", False),
        ("[::1]x", "::1", False),
        ("::1", "::1", False),
        ("Example:80", "10.0.0.1", True),
        ("example.:80", "10.0.0.1", True),
        ("example..", "10.0.0.1", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.2", "10.0.0.1", False),
        ("010.0.0.1", "10.0.0.1", False),
        ("xn--e1afmkfd.example", "10.0.0.1", False),
        (":80", "10.0.0.1", False),
    ],
)
def test_names_of_the_node(host, address, good):
    hosts = Hosts(["example"])
    for _ in range(2):  # remembered or not
        if good:
            hosts.check(host, address)
        else:
            with pytest.raises(MisdirectedHost):
                hosts.check(host, address)


def test_a_name_is_good_for_the_address_that_it_was_good_for():
    hosts = Hosts([])
    hosts.check("10.0.0.1", "10.0.0.1")
    with pytest.raises(MisdirectedHost):
        hosts.check("10.0.0.1", "10.0.0.2")


def test_no_host_is_a_bad_request():
    with pytest.raises(BadRequest):
        Hosts([]).check(None, "127.0.0.1")


@given(st.text(max_size=50))
def test_no_foreign_name_is_taken_for_the_nodes(host):
    own = {"localhost", "127.0.0.1"}
    try:
        Hosts([]).check(host, "127.0.0.1")
    except MisdirectedHost:
        return
    name = host.rpartition(":")[0] if ":" in host else host
    assert name.lower().rstrip(".").strip("[]").partition("%")[0] in own


@given(st.text(max_size=50), st.sampled_from(["PUT", "POST", "DELETE", "PATCH", "X"]))
def test_a_foreign_origin_is_refused_for_each_change(origin, method):
    headers = {"host": "localhost:8080", "origin": origin}
    try:
        check_origin(method, "/v1/kv/a", headers, frozenset())
    except ForeignOrigin:
        return
    assert origin.partition("://")[2].lower() == "localhost:8080"


@given(st.binary(max_size=100))
def test_any_query_is_read_or_refused(query):
    try:
        read = params(query)
    except NkvError:
        return
    assert all(isinstance(part, str) for pair in read.items() for part in pair)


@given(st.binary(max_size=100))
def test_any_path_is_read_or_refused(path):
    with contextlib.suppress(BadRequest):
        assert isinstance(path_of(b"/" + path), str)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"cookie", b"c"]), st.binary(max_size=5))))
def test_header_fields_of_a_name_become_one(raw):
    headers = _headers(raw)
    assert set(headers) == {name.decode() for name, _ in raw}
    for name, value in headers.items():
        mark = "; " if name == "cookie" else ", "
        sent = [value.decode("latin-1") for each, value in raw if each == name.encode()]
        assert value == mark.join(sent)


@given(st.text(max_size=8), st.text(max_size=8))
def test_no_header_field_can_begin_another(name, value):
    try:
        raw = raw_headers({name: value})
    except ValueError:  # UnicodeEncodeError is one
        return
    for part in raw[0]:
        assert not set(part) & set(b"\r\n\0")
        assert b":" not in raw[0][0]


@given(st.integers(-1000, 2000))
def test_only_statuses_of_replies_are_sent(status):
    try:
        assert answer(Reply(status)).status == status
    except ValueError:
        assert not 200 <= status <= 599
    else:
        assert 200 <= status <= 599


@pytest.mark.parametrize(
    "given_settings",
    [
        {"port": 70000},
        {"port": -1},
        {"max_connections": 0},
        {"header_timeout": 0},
        {"prot": 80},
        {"tls_key": "key.pem"},
    ],
)
def test_settings_that_make_no_sense_are_refused(given_settings):
    with pytest.raises(SettingsError):
        convert_section("transport.http", given_settings, HttpSettings)
