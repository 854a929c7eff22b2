"""Handler registry: paths, parameters, mounts, collisions, and the collector of a generation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.contracts.handlers import ANY_METHOD, WEBSOCKET, Route
from nkv_core.contracts.owner import Owner
from nkv_core.errors import MethodNotAllowed, NoHandler, PluginInvalid, PluginNotFound, RouteTaken
from nkv_core.handlers import HandlerCollector, Routes, parse_path

OWNER = Owner("nkv_one")
OTHER = Owner("nkv_two")


def handler(request):
    return None


def route(path, method="GET", listener="http", owner=OWNER, kind="handler"):
    return Route(listener, method, path, handler, owner, kind)


def found(table, path, method="GET", listener="http"):
    match = table.find(listener, method, path)
    return match.route.path, match.params, match.rest


# --- lookup ---------------------------------------------------------------------------------------


def test_a_literal_path_is_found():
    table = Routes([route("/a"), route("/a/b"), route("/")])
    assert found(table, "/a/b") == ("/a/b", None, "/a/b")
    assert found(table, "/") == ("/", None, "/")
    assert ("http", "GET", "/a") in table.exact


def test_a_parameter_is_one_level_and_never_nothing():
    table = Routes([route("/v1/users/{name}")])
    assert found(table, "/v1/users/ann") == ("/v1/users/{name}", {"name": "ann"}, "/v1/users/ann")
    for path in ("/v1/users/", "/v1/users", "/v1/users/ann/more"):
        with pytest.raises(NoHandler):
            table.find("http", "GET", path)


@pytest.mark.parametrize("key", ["a", "a/b", "/", "//", "a/", "/a", "a.b*c", "ключ", "?", "{x}"])
@pytest.mark.parametrize("besides", ["/v1/kv", "/v1/kv/", "/v1/kv/b/", "/v1/kv/{one}/c"])
def test_the_rest_of_a_path_keeps_every_slash(key, besides):
    table = Routes([route("/v1/kv/{key:path}"), route(besides)])
    assert table.find("http", "GET", "/v1/kv/" + key).params == {"key": key}
    assert table.find("http", "HEAD", "/v1/kv/" + key).params == {"key": key}
    with pytest.raises(MethodNotAllowed):
        table.find("http", "PUT", "/v1/kv/" + key)


def test_the_rest_of_a_path_is_never_nothing():
    table = Routes([route("/v1/kv/{key:path}")])
    for path in ("/v1/kv", "/v1/kv/"):
        with pytest.raises(NoHandler):
            table.find("http", "GET", path)


def test_literal_goes_before_parameter_and_that_before_the_rest():
    table = Routes([route("/{rest:path}"), route("/a/{one}"), route("/a/b")])
    assert found(table, "/a/b")[0] == "/a/b"
    assert found(table, "/a/c")[:2] == ("/a/{one}", {"one": "c"})
    assert found(table, "/a/b/c")[:2] == ("/{rest:path}", {"rest": "a/b/c"})


def test_a_literal_level_that_leads_nowhere_is_left_again():
    table = Routes([route("/a/b/c"), route("/{x}/b/d")])
    assert found(table, "/a/b/d")[:2] == ("/{x}/b/d", {"x": "a"})


def test_another_method_may_be_found_behind_a_better_fit():
    table = Routes([route("/a/b"), route("/a/{x}", "POST")])
    assert found(table, "/a/b", "POST")[:2] == ("/a/{x}", {"x": "b"})


def test_head_is_answered_by_get_unless_it_has_a_handler():
    table = Routes([route("/a"), route("/b"), route("/b", "HEAD"), route("/c/{x}")])
    assert table.exact["http", "HEAD", "/a"].method == "GET"
    assert table.exact["http", "HEAD", "/b"].method == "HEAD"
    assert table.find("http", "HEAD", "/c/1").route.method == "GET"


def test_a_wrong_method_names_those_allowed():
    table = Routes([route("/a"), route("/a", "PUT"), route("/{x}", "DELETE")])
    with pytest.raises(MethodNotAllowed) as refused:
        table.find("http", "POST", "/a")
    assert refused.value.allowed == ("DELETE", "GET", "HEAD", "PUT")
    assert table.sibling("http", "/a").path == "/a"


def test_a_path_of_a_websocket_alone_has_no_handler_for_others():
    table = Routes([route("/ws", WEBSOCKET, kind="websocket")])
    assert table.find("http", WEBSOCKET, "/ws").route.kind == "websocket"
    with pytest.raises(NoHandler, match="without a WebSocket"):
        table.find("http", "GET", "/ws")


def test_a_websocket_and_a_get_share_a_path():
    table = Routes([route("/ws", WEBSOCKET, kind="websocket"), route("/ws")])
    with pytest.raises(MethodNotAllowed) as refused:
        table.find("http", "POST", "/ws")
    assert refused.value.allowed == ("GET", "HEAD")
    assert table.sibling("http", "/ws").kind == "handler"


def test_listeners_are_apart():
    table = Routes([route("/a"), route("get", "CALL", "resp")])
    assert found(table, "get", "CALL", "resp")[0] == "get"
    with pytest.raises(NoHandler):
        table.find("resp", "GET", "/a")
    with pytest.raises(NoHandler):
        table.find("nowhere", "GET", "/a")


def test_the_longest_prefix_of_a_mount_wins_and_handlers_go_before():
    mounts = [route(p, ANY_METHOD, kind="mount") for p in ("/", "/app", "/app/deep/")]
    table = Routes([*mounts, route("/app/own")])
    assert found(table, "/app/own") == ("/app/own", None, "/app/own")
    assert found(table, "/app/own", "POST") == ("/app", None, "/own")
    assert found(table, "/app") == ("/app", None, "")
    assert found(table, "/app/deep/x", WEBSOCKET) == ("/app/deep/", None, "/x")
    assert found(table, "/application") == ("/", None, "/application")


PARTS = st.sampled_from(["a", "b", "", "{x}", "{y:path}"])


@given(
    patterns=st.lists(st.lists(PARTS, min_size=1, max_size=4), max_size=6),
    path=st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=5),
)
def test_lookup_agrees_with_trying_every_route(patterns, path):
    routes, shapes = [], set()
    for parts in patterns:
        if "{y:path}" in parts[:-1] or parts.count("{x}") > 1 or tuple(parts) in shapes:
            continue
        shapes.add(tuple(parts))
        routes.append(route("/" + "/".join(parts)))
    # Smaller is better: level by level, literal, then one, then the rest.
    fits = []
    for parts in shapes:
        rank = []
        for at, part in enumerate(parts):
            if part == "{y:path}":
                if "/".join(path[at:]):
                    fits.append(([*rank, 2], parts))
                break
            if at >= len(path) or not (part == path[at] or (part == "{x}" and path[at])):
                break
            rank.append(int(part == "{x}"))
        else:
            if len(parts) == len(path):
                fits.append((rank, parts))
    asked = "/" + "/".join(path)
    if fits:
        best = "/" + "/".join(min(fits)[1])
        assert Routes(routes).find("http", "GET", asked).route.path == best
    else:
        with pytest.raises(NoHandler):
            Routes(routes).find("http", "GET", asked)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "a/b",
        "/a?b",
        "/a#b",
        "/a\nb",
        "/{}",
        "/{a",
        "/x{a}",
        "/{a}.json",
        "/{1a}",
        "/{a:int}",
        "/{a:path}/b",
        "/{a}/{a}",
    ],
)
def test_what_is_not_a_path_is_refused(path):
    with pytest.raises(PluginInvalid):
        parse_path(path, "http")


def test_one_word_is_a_path_for_listeners_other_than_http():
    assert parse_path("get", "resp") == (("get",), ())
    with pytest.raises(PluginInvalid):
        parse_path("get/it", "resp")


@pytest.mark.parametrize(
    ("first", "second"),
    [("/a", "/a"), ("/v1/{x}", "/v1/{y}"), ("/v1/{x:path}", "/v1/{y:path}")],
)
def test_a_second_handler_for_the_same_is_refused_and_names_both(first, second):
    with pytest.raises(RouteTaken) as refused:
        Routes([route(first), route(second, owner=OTHER)])
    assert "nkv_one" in refused.value.detail
    assert "nkv_two" in refused.value.detail
    assert f"GET {second}" in refused.value.detail


def test_other_methods_listeners_and_shapes_do_not_collide():
    Routes(
        [
            route("/a"),
            route("/a", "PUT", owner=OTHER),
            route("/a", listener="unix", owner=OTHER),
            route("/{x}", owner=OTHER),
            route("/{x:path}", owner=OTHER),
        ]
    )


def test_two_mounts_at_one_prefix_are_refused():
    with pytest.raises(RouteTaken, match=r"nkv_one.*nkv_two"):
        Routes(
            [
                route("/app", ANY_METHOD, kind="mount"),
                route("/app/", ANY_METHOD, owner=OTHER, kind="mount"),
            ]
        )


# --- the collector --------------------------------------------------------------------------------


class Sink:
    def __init__(self, refuse=()):
        self.routes = []
        self.refuse = refuse

    def add_route(self, route):
        if route.method in self.refuse:
            raise RouteTaken
        self.routes.append(route)

    def remove_route(self, listener, method, path, owner):
        place = (listener, method, path)
        self.routes = [r for r in self.routes if (r.listener, r.method, r.path) != place]


def collector(features=frozenset({"websocket", "mount"})):
    return HandlerCollector(OWNER, lambda listener: features)


def test_the_collector_keeps_what_is_registered():
    handlers = collector()
    handlers.add("/a", handler, methods=("GET", "PUT"), command="a", timeout=None, public=True)
    handlers.websocket("/ws", handler)
    handlers.mount("/app", handler)
    kept = [(r.method, r.path, r.kind, r.owner) for r in handlers.routes]
    assert kept == [
        ("GET", "/a", "handler", OWNER),
        ("PUT", "/a", "handler", OWNER),
        (WEBSOCKET, "/ws", "websocket", OWNER),
        (ANY_METHOD, "/app", "mount", OWNER),
    ]
    assert handlers.routes[0].public
    assert handlers.routes[0].timeout is None
    assert handlers.routes[0].command == "a"


def test_the_collector_refuses_what_a_plugin_registers_twice():
    handlers = collector()
    handlers.add("/a", handler)
    with pytest.raises(RouteTaken, match="twice by nkv_one"):
        handlers.add("/a", handler, methods=("PUT", "GET"))
    assert len(handlers.routes) == 1


def test_what_was_registered_can_be_taken_back():
    handlers = collector()
    handlers.add("/a", handler)
    handlers.remove("/a")
    assert handlers.routes == ()
    with pytest.raises(PluginNotFound, match="nkv_one"):
        handlers.remove("/a")


@pytest.mark.parametrize("methods", ["GET", (), ("get",), ("",), (WEBSOCKET,), ("*",), (1,)])
def test_what_are_no_methods_is_refused(methods):
    with pytest.raises(PluginInvalid, match="/a"):
        collector().add("/a", handler, methods=methods)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(PluginInvalid, match="cannot be called"):
        collector().add("/a", "handler")


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout):
    with pytest.raises(PluginInvalid, match="timeout"):
        collector().add("/a", handler, timeout=timeout)


def test_features_that_the_transport_lacks_are_refused():
    handlers = collector(frozenset())
    with pytest.raises(PluginInvalid, match="http has no websocket"):
        handlers.websocket("/ws", handler)
    with pytest.raises(PluginInvalid, match="http has no mount"):
        handlers.mount("/app", handler)


def test_a_transport_that_is_not_there_yet_is_no_reason_to_refuse():
    handlers = collector(None)
    handlers.websocket("/ws", handler)
    handlers.mount("/app", handler)
    assert len(handlers.routes) == 2


@pytest.mark.parametrize("prefix", ["app", "", "/{x}", "/a?b"])
def test_what_is_not_a_prefix_is_refused(prefix):
    with pytest.raises(PluginInvalid):
        collector().mount(prefix, handler)


def test_once_live_all_is_passed_on():
    handlers, sink = collector(), Sink()
    handlers.add("/before", handler)
    handlers.live(sink)
    handlers.add("/after", handler, methods=("GET", "PUT"))
    handlers.remove("/after", methods=("PUT",))
    assert [(r.method, r.path) for r in sink.routes] == [("GET", "/after")]
    assert [r.path for r in handlers.routes] == ["/before"]


def test_once_live_all_methods_are_added_or_none():
    handlers, sink = collector(), Sink(refuse=("PUT",))
    handlers.live(sink)
    with pytest.raises(RouteTaken):
        handlers.add("/a", handler, methods=("GET", "PUT"))
    assert sink.routes == []
