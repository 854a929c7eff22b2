"""Dispatch: the life of a request, switches under load, draining, cancellation, tokens."""

import gc
import math
import threading
import weakref

import anyio
import pytest

from nkv_core import dispatch as module
from nkv_core.auth import Auth, GuardedKeyspace, new_token
from nkv_core.bus import Listener
from nkv_core.contracts.handlers import (
    ANY_METHOD,
    WEBSOCKET,
    Handover,
    Reply,
    Request,
    Route,
    Stream,
)
from nkv_core.contracts.identity import Right
from nkv_core.contracts.owner import CORE, Owner
from nkv_core.contracts.settings import BusSettings
from nkv_core.dispatch import Dispatcher, Registration
from nkv_core.errors import (
    BodyTooLarge,
    ClientGone,
    DeadlineExceeded,
    Forbidden,
    HandlerFailed,
    MethodNotAllowed,
    NoHandler,
    NotFound,
    PluginInvalid,
    PluginNotFound,
    Rejected,
    RouteTaken,
    Stopping,
    Unauthenticated,
)
from nkv_core.events import (
    Connect,
    PluginLoaded,
    RequestComplete,
    RequestEnd,
    RequestStart,
)
from nkv_core.records import Change

LIFE = (RequestStart, RequestComplete, RequestEnd)


class Plugin:
    """One generation: routes and listeners, loaded into a dispatcher."""

    def __init__(self, name="nkv_example", generation=1):
        self.owner = Owner(name, generation)
        self.routes = []
        self.listeners = []

    def add(self, path, handler, method="GET", **more):
        self.routes.append(
            Route("http", method, path, handler, self.owner, **{"timeout": None, **more})
        )
        return self

    def on(self, event, call, **more):
        self.listeners.append(Listener(event, call, self.owner, **more))
        return self

    @property
    def registration(self):
        return Registration(self.owner, tuple(self.routes), tuple(self.listeners))


class Client:
    """Sends requests and keeps what came back."""

    def __init__(self, dispatcher):
        self.dispatcher = dispatcher
        self.replies = []

    async def send(self, path="/x", method="GET", reply=None, **more):
        async def kept(outcome, error, route):
            self.replies.append((outcome, error, route))
            if reply is not None:
                await reply(outcome, error, route)

        request = Request(transport="http", method=method, path=path, **more)
        await self.dispatcher.dispatch(request, kept)
        return request

    async def get(self, path="/x", method="GET", **more):
        await self.send(path, method, **more)
        outcome, error, _ = self.replies[-1]
        if error is not None:
            raise error
        return outcome


@pytest.fixture
def dispatcher():
    return made()


@pytest.fixture
def client(dispatcher):
    return Client(dispatcher)


def made(auth=None, **settings):
    made = Dispatcher(settings=BusSettings(**{"budget": 60, **settings}), auth=auth)
    made.node, made.keyspace = "the node", "the keyspace"
    return made


def load(dispatcher, plugin, leave=None):
    dispatcher.switch(leave=leave and leave.owner, enter=plugin.registration)
    return plugin


async def hello(request):
    return "hello"


# --- the life of a request ------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_handler_answers(dispatcher, client, kind):
    seen = []

    def plain(request):
        seen.append(request)
        return {"hello": request.params["name"]}

    async def later(request):
        await anyio.lowlevel.checkpoint()
        return plain(request)

    plugin = load(dispatcher, Plugin().add("/x", plain if kind == "plain" else later))
    assert await client.get(params={"name": "world"}) == {"hello": "world"}
    (request,) = seen
    assert (request.id, request.command, request.owner) == (1, "/x", plugin.owner)
    assert (request.node, request.keyspace, request.identity) == ("the node", "the keyspace", None)
    assert client.replies[-1][2] is plugin.routes[0]


@pytest.mark.anyio
async def test_ids_are_never_repeated_and_commands_come_from_the_route(dispatcher, client):
    load(
        dispatcher,
        Plugin().add("/v1/{key:path}", hello, command="get").add("/v1/{key:path}", hello, "PUT"),
    )
    first = await client.send("/v1/a/b", params={"key": "of the query", "more": "1"})
    second = await client.send("/v1/a", "PUT")
    assert (first.id, first.command) == (1, "get")
    assert first.params == {"key": "a/b", "more": "1"}
    assert (second.id, second.command, second.params) == (2, "/v1/{key:path}", {"key": "a"})


def witness(plugin, log):
    """Listen to the life of requests."""
    return (
        plugin.on(RequestStart, lambda event: log.append(("start", event)))
        .on(RequestComplete, lambda event: log.append(("complete", event)))
        .on(RequestEnd, lambda event: log.append(("end", event)))
    )


@pytest.mark.anyio
async def test_the_events_of_a_success_come_in_order_around_handler_and_reply(dispatcher, client):
    log = []

    async def handler(request):
        log.append(("handler", None))
        return "outcome"

    async def reply(outcome, error, route):
        log.append(("reply", None))

    load(dispatcher, witness(Plugin().add("/x", handler, command="x"), log))
    await client.send(params={"a": "b"}, peer="127.0.0.1:5", reply=reply)
    assert [what for what, _ in log] == ["start", "handler", "complete", "reply", "end"]
    start, complete, end = log[0][1], log[2][1], log[4][1]
    assert start == RequestStart(1, "x", "/x", {"a": "b"}, "127.0.0.1:5", None, "http")
    assert (complete.request, complete.outcome, complete.error) == (start, "outcome", None)
    assert (end.request, end.outcome, end.error) == (start, "outcome", None)
    assert end.elapsed >= 0


async def not_found(request):
    raise NotFound


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "method", "error"),
    [("/missing", "GET", NotFound), ("/no", "GET", NoHandler), ("/x", "PUT", MethodNotAllowed)],
)
async def test_errors_unknown_paths_and_wrong_methods_go_through_all_events(
    dispatcher, client, path, method, error
):
    log = []
    load(dispatcher, witness(Plugin().add("/x", hello).add("/missing", not_found), log))
    await client.send(path, method)
    (_, sent, _) = client.replies[-1]
    assert type(sent) is error
    assert [what for what, _ in log] == ["start", "complete", "end"]
    assert log[1][1].error is log[2][1].error is sent
    assert log[2][1].outcome is None
    assert sent.__traceback__ is None  # who keeps the event keeps no frame of the handler


@pytest.mark.anyio
async def test_a_wrong_method_is_answered_in_the_form_of_the_path(dispatcher, client):
    plugin = load(dispatcher, Plugin().add("/x", hello))
    with pytest.raises(MethodNotAllowed) as refused:
        await client.get("/x", "DELETE")
    assert refused.value.allowed == ("GET", "HEAD")
    assert client.replies[-1][2] is plugin.routes[0]
    with pytest.raises(NoHandler):
        await client.get("/y")
    assert client.replies[-1][2] is None


@pytest.mark.anyio
async def test_without_listeners_no_event_is_made(dispatcher, client, monkeypatch):
    def never(*given):
        raise AssertionError("an event was made that nobody listens to")

    for name in ("RequestStart", "RequestComplete", "RequestEnd"):
        monkeypatch.setattr(module, name, never)
    load(dispatcher, Plugin().add("/x", hello).add("/fails", not_found))
    assert await client.get() == "hello"
    for path in ("/fails", "/no"):
        with pytest.raises((NotFound, NoHandler)):
            await client.get(path)


@pytest.mark.anyio
async def test_a_handler_that_fails_is_logged_once_and_answered_without_internals(
    dispatcher, client, caplog
):
    async def fails(request):
        raise RuntimeError("the inside of it")

    load(dispatcher, Plugin().add("/x", fails))
    with pytest.raises(HandlerFailed) as failed:
        await client.get()
    assert "inside" not in failed.value.detail
    assert failed.value.__cause__ is failed.value.__context__ is None
    (logged,) = caplog.records
    assert "nkv_example" in logged.getMessage()
    assert "the inside of it" in caplog.text


# --- veto and replacement -------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_start_listener_may_refuse_the_request(dispatcher, client, kind):
    log = []

    def rejects(event):
        raise Rejected(429, "too_many", "Slow down.")

    async def rejects_later(event):
        await anyio.lowlevel.checkpoint()
        rejects(event)

    async def never(size):
        raise AssertionError("the body was received")

    plugin = Plugin().add("/x", lambda request: log.append("handler"))
    plugin.on(RequestStart, rejects if kind == "plain" else rejects_later)
    load(dispatcher, witness(plugin, log))
    with pytest.raises(Rejected) as refused:
        await client.get(receive_body=never)
    assert (refused.value.status, refused.value.code) == (429, "too_many")
    assert [what for what, _ in log] == ["complete", "end"]
    assert log[1][1].error is refused.value
    with pytest.raises(Rejected):  # an unknown path does not get past it either
        await client.get("/no")


@pytest.mark.anyio
async def test_rejecting_later_than_at_the_start_is_only_a_mistake(dispatcher, client, caplog):
    def rejects(event):
        raise Rejected

    load(
        dispatcher,
        Plugin().add("/x", hello).on(RequestComplete, rejects).on(RequestEnd, rejects),
    )
    assert await client.get() == "hello"
    assert [each.errors for each in dispatcher.offences()] == [1, 1]


@pytest.mark.anyio
async def test_a_complete_listener_may_replace_what_is_sent(dispatcher, client):
    ended = []

    async def turn(event):
        await anyio.lowlevel.checkpoint()
        if event.error is not None:
            event.replace({"instead of": event.error.code})
        elif event.command == "/secret":
            event.replace(Forbidden())

    load(
        dispatcher,
        Plugin()
        .add("/fails", not_found)
        .add("/secret", hello)
        .on(RequestComplete, turn)
        .on(RequestEnd, ended.append),
    )
    assert await client.get("/fails") == {"instead of": "not_found"}
    assert await client.get("/no") == {"instead of": "no_handler"}
    with pytest.raises(Forbidden):
        await client.get("/secret")
    assert [type(end.error) for end in ended] == [type(None), type(None), Forbidden]


@pytest.mark.anyio
async def test_complete_listeners_see_what_earlier_ones_replaced(dispatcher, client):
    load(
        dispatcher,
        Plugin()
        .add("/x", hello)
        .on(RequestComplete, lambda event: event.replace(event.outcome + "!"), priority=2)
        .on(RequestComplete, lambda event: event.replace(event.outcome.upper()), priority=1),
    )
    assert await client.get() == "HELLO!"


@pytest.mark.anyio
async def test_a_slow_end_listener_delays_nobody(dispatcher, client):
    begun = anyio.Event()

    async def hangs(event):
        begun.set()
        await anyio.sleep_forever()

    load(dispatcher, Plugin().add("/x", hello).on(RequestEnd, hangs))
    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: dispatcher.run(task_status=task_status))
        with anyio.fail_after(60):
            for _ in range(3):
                assert await client.get() == "hello"
            await begun.wait()
        tasks.cancel_scope.cancel()


# --- bodies and replies ---------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_body_is_received_after_the_start_and_up_to_the_limit_of_the_route(
    dispatcher, client
):
    log = []

    async def body(most):
        log.append(most)
        return b"body"

    plugin = Plugin().add("/x", lambda request: request.body, "PUT", max_body=5)
    load(dispatcher, plugin.on(RequestStart, lambda event: log.append("start")))
    assert await client.get(method="PUT", receive_body=body) == b"body"
    assert log == ["start", 5]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("raised", "error"),
    [(BodyTooLarge(), BodyTooLarge), (OSError(), ClientGone), (ValueError(), HandlerFailed)],
)
async def test_a_body_that_does_not_come_is_an_error(dispatcher, client, raised, error):
    async def body(most):
        raise raised

    load(dispatcher, Plugin().add("/x", hello, "PUT"))
    with pytest.raises(error):
        await client.get(method="PUT", receive_body=body)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (OSError("unlogged"), ClientGone),
        (anyio.BrokenResourceError(), ClientGone),
        (anyio.ClosedResourceError(), ClientGone),
        (Stopping(), Stopping),
        (TypeError("no JSON"), HandlerFailed),
    ],
)
async def test_a_reply_that_fails_is_noted_at_the_end(dispatcher, client, caplog, raised, error):
    ended = []

    async def reply(outcome, error, route):
        raise raised

    plugin = load(dispatcher, Plugin().add("/x", hello).on(RequestEnd, ended.append))
    await client.send(reply=reply)
    assert type(ended[0].error) is error
    assert ended[0].outcome == "hello"
    assert ("no JSON" in caplog.text) is (len(caplog.records) == 1) is (error is HandlerFailed)
    assert plugin.owner.running == 0


@pytest.mark.anyio
async def test_websockets_and_mounts_are_handed_over(dispatcher, client):
    async def app(scope, receive, send):
        raise AssertionError("the transport calls it")

    plugin = Plugin()
    plugin.add("/ws/{room}", app, WEBSOCKET, kind="websocket", timeout=60.0)
    plugin.add("/app", app, ANY_METHOD, kind="mount", timeout=60.0)
    load(dispatcher, plugin)
    handed = await client.get("/ws/a", WEBSOCKET)
    assert handed == Handover(plugin.routes[0], "/ws/a")
    assert await client.get("/app/deep/x", "POST") == Handover(plugin.routes[1], "/deep/x")


# --- deadlines ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_handler_is_ended_at_its_deadline(dispatcher, client):
    ended = []

    async def hangs(request):
        await anyio.sleep_forever()

    plugin = Plugin().add("/x", hangs, timeout=0.01).on(RequestEnd, ended.append)
    load(dispatcher, plugin)
    with anyio.fail_after(60), pytest.raises(DeadlineExceeded, match=r"more than 0\.01 s"):
        await client.get()
    assert type(ended[0].error) is DeadlineExceeded
    assert plugin.owner.running == 0


@pytest.mark.anyio
async def test_the_deadline_of_a_handler_is_not_that_of_its_reply(dispatcher, client):
    async def reply(outcome, error, route):
        await anyio.sleep(0.05)

    load(dispatcher, Plugin().add("/x", hello, timeout=0.02))
    with anyio.fail_after(60):
        await client.send(reply=reply)
        assert await client.get() == "hello"
    assert dispatcher.measurements()[0].samples[0][0]["code"] == "ok"


@pytest.mark.anyio
@pytest.mark.parametrize("timeout", [60.0, math.inf])
async def test_at_the_drain_deadline_a_handler_is_ended_and_the_client_told(
    dispatcher, client, timeout
):
    begun, ended, idle = anyio.Event(), [], anyio.Event()

    async def hangs(request):
        begun.set()
        await anyio.sleep_forever()

    plugin = Plugin().add("/x", hangs, timeout=timeout)
    load(dispatcher, plugin.on(RequestEnd, ended.append))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send)
            await begun.wait()
            dispatcher.switch(leave=plugin.owner)
            plugin.owner.drain(idle.set)
            assert plugin.owner.cut() == 1
            await idle.wait()
    assert type(client.replies[0][1]) is Stopping
    assert type(ended[0].error) is Stopping


async def endless():
    while True:
        yield b"more"
        await anyio.sleep_forever()


@pytest.mark.anyio
@pytest.mark.parametrize("timeout", [None, 60.0])
async def test_a_stream_is_under_way_until_its_reply_ends(dispatcher, client, timeout):
    begun, ended = anyio.Event(), []

    async def send_all(outcome, error, route):
        async for _ in outcome.iterator:
            begun.set()

    plugin = Plugin().add("/x", lambda request: Stream(endless()), timeout=timeout)
    load(dispatcher, plugin.on(RequestEnd, ended.append))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.send(reply=send_all))
            await begun.wait()
            assert plugin.owner.running == 1
            assert in_flight(dispatcher) == 1
            idle = anyio.Event()
            plugin.owner.drain(idle.set)
            assert not idle.is_set()
            plugin.owner.cut()
            await idle.wait()
    assert type(ended[0].error) is Stopping
    assert in_flight(dispatcher) == 0


@pytest.mark.anyio
async def test_a_stream_says_goodbye_when_its_plugin_drains(dispatcher, client):
    sent, begun = [], anyio.Event()

    async def send_all(outcome, error, route):
        going = anyio.Event()
        request.owner.open_stream(request, going.set)
        begun.set()
        await going.wait()
        sent.append(outcome.goodbye())

    request = Request(transport="http", method="GET", path="/x")
    plugin = Plugin().add("/x", lambda request: Stream(endless(), goodbye=lambda: b"bye"))
    load(dispatcher, plugin)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dispatcher.dispatch, request, send_all)
            await begun.wait()
            idle = anyio.Event()
            plugin.owner.drain(idle.set)
            await idle.wait()
    assert sent == [b"bye"]


# --- cancellation ---------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["start", "body", "handler", "complete", "reply"])
@pytest.mark.parametrize("timeout", [None, 60.0])
async def test_a_client_that_goes_leaves_nothing_behind_and_the_end_is_told(
    dispatcher, client, where, timeout
):
    begun, ended = anyio.Event(), []

    async def hang_at(place):
        if place == where:
            begun.set()
            await anyio.sleep_forever()

    async def handler(request):
        await hang_at("handler")

    async def start(event):
        await hang_at("start")

    async def complete(event):
        await hang_at("complete")

    async def reply(outcome, error, route):
        await hang_at("reply")

    async def body(most):
        await hang_at("body")
        return b""

    plugin = Plugin().add("/x", handler, timeout=timeout)
    plugin.on(RequestStart, start).on(RequestComplete, complete).on(RequestEnd, ended.append)
    load(dispatcher, plugin)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.send(receive_body=body, reply=reply))
            await begun.wait()
            tasks.cancel_scope.cancel()
    (end,) = ended
    assert type(end.error) is ClientGone
    assert plugin.owner.running == 0
    assert CORE.running == 0
    assert in_flight(dispatcher) == 0
    assert counted(dispatcher) == {("/x", "client_gone"): 1}


# --- switching ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_thousand_requests_in_flight_finish_on_the_generation_they_began_with(
    dispatcher, client
):
    let_go, begun = anyio.Event(), []

    def generation(number):
        async def handler(request):
            begun.append(number)
            await let_go.wait()
            return number

        ended.setdefault(number, [])
        plugin = Plugin("nkv_example", number).add("/x", handler)
        return plugin.on(RequestEnd, lambda event: ended[number].append(event.outcome))

    ended = {}
    old = load(dispatcher, generation(1))
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(1000):
                tasks.start_soon(client.send)
            while len(begun) < 1000:
                await anyio.lowlevel.checkpoint()
            new = load(dispatcher, generation(2), leave=old)
            for _ in range(1000):
                tasks.start_soon(client.send)
            while len(begun) < 2000:
                await anyio.lowlevel.checkpoint()
            assert (old.owner.running, new.owner.running) == (1000, 1000)
            idle = anyio.Event()
            old.owner.drain(idle.set)
            let_go.set()
            await idle.wait()
    assert begun == [1] * 1000 + [2] * 1000
    assert ended == {1: [1] * 1000, 2: [2] * 1000}
    assert not [error for _, error, _ in client.replies if error is not None]


@pytest.mark.anyio
async def test_no_request_fails_while_a_plugin_is_replaced_over_and_over(dispatcher, client):
    answers = []

    def generation(number):
        async def handler(request):
            await anyio.lowlevel.checkpoint()
            return number

        return Plugin("nkv_example", number).add("/x", handler)

    async def ask():
        while True:
            answers.append(await client.get())

    current = load(dispatcher, generation(0))
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask)
            for number in range(1, 200):
                current, old = load(dispatcher, generation(number), leave=current), current
                idle = anyio.Event()
                old.owner.drain(idle.set)
                await idle.wait()
                old.owner.close()
            while answers[-1:] != [199]:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert len(dispatcher.routes("http")) == 1


@pytest.mark.anyio
async def test_a_request_that_waits_at_its_start_is_not_given_to_a_generation_that_is_gone(
    dispatcher, client
):
    let_go, begun = anyio.Event(), anyio.Event()

    async def waits(event):
        begun.set()
        await let_go.wait()

    load(dispatcher, Plugin("nkv_gate").on(RequestStart, waits))
    old = load(dispatcher, Plugin("nkv_example", 1).add("/x", lambda request: 1))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send)
            await begun.wait()
            load(dispatcher, Plugin("nkv_example", 2).add("/x", lambda request: 2), leave=old)
            old.owner.drain(lambda: None)
            old.owner.close()
            let_go.set()
        assert client.replies[-1][0] == 2


@pytest.mark.anyio
async def test_a_request_that_waits_at_its_start_learns_that_its_plugin_was_unloaded(
    dispatcher, client
):
    let_go, begun = anyio.Event(), anyio.Event()

    async def waits(event):
        begun.set()
        await let_go.wait()

    load(dispatcher, Plugin("nkv_gate").on(RequestStart, waits))
    old = load(dispatcher, Plugin().add("/x", hello))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send)
            await begun.wait()
            dispatcher.switch(leave=old.owner)
            old.owner.drain(lambda: None)
            let_go.set()
    assert type(client.replies[-1][1]) is NoHandler


@pytest.mark.anyio
async def test_listeners_of_a_closed_generation_are_not_called_by_requests_that_began_with_them(
    dispatcher, client
):
    heard, let_go, begun = [], anyio.Event(), anyio.Event()

    async def handler(request):
        begun.set()
        await let_go.wait()

    load(dispatcher, Plugin("nkv_slow").add("/x", handler))
    plugin = load(dispatcher, witness(Plugin("nkv_ear"), heard))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send)
            await begun.wait()
            dispatcher.switch(leave=plugin.owner)
            plugin.owner.close()
            let_go.set()
    assert [what for what, _ in heard] == ["start"]


@pytest.mark.anyio
async def test_an_old_generation_is_freed_although_a_stream_of_another_plugin_goes_on(
    dispatcher, client
):
    begun = anyio.Event()

    class Witness:
        async def handler(self, request):
            return "old"

        def start(self, event):
            pass

        async def end(self, event):
            pass

    async def send_all(outcome, error, route):
        async for _ in outcome.iterator:
            begun.set()

    load(dispatcher, Plugin("nkv_stream").add("/stream", lambda request: Stream(endless())))
    witness = Witness()
    old = Plugin("nkv_example", 1).add("/x", witness.handler)
    old.on(RequestStart, witness.start).on(RequestEnd, witness.end)
    load(dispatcher, old)
    gone = weakref.ref(witness)
    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: dispatcher.run(task_status=task_status))
        tasks.start_soon(lambda: client.send("/stream", reply=send_all))
        with anyio.fail_after(60):
            await begun.wait()
            assert await client.get("/x") == "old"
            client.replies.clear()
            new = load(dispatcher, Plugin("nkv_example", 2).add("/x", lambda request: "new"), old)
            idle = anyio.Event()
            old.owner.drain(idle.set)
            await idle.wait()
            old.owner.close()
            del old, witness
            while gone() is not None:  # until the task of its end listener has left, too
                await anyio.lowlevel.checkpoint()
                gc.collect()
            assert await client.get("/x") == "new"
            assert new.owner.running == 0
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_path_that_is_taken_is_refused_and_changes_nothing(dispatcher, client):
    load(dispatcher, Plugin("nkv_one").add("/x", hello))
    other = Plugin("nkv_two").add("/y", hello).add("/x", hello).on(RequestStart, print)
    with pytest.raises(RouteTaken, match=r"GET /x .* nkv_one; nkv_two"):
        load(dispatcher, other)
    with pytest.raises(NoHandler):
        await client.get("/y")
    assert await client.get() == "hello"
    assert dispatcher.offences() == []


def test_a_listener_that_cannot_be_called_is_refused_and_changes_nothing(dispatcher):
    old = load(dispatcher, Plugin().add("/x", hello))
    bad = Plugin("nkv_example", 2).add("/x", hello).on(RequestStart, lambda event, more: None)
    with pytest.raises(PluginInvalid, match="more"):
        load(dispatcher, bad, leave=old)
    (route,) = dispatcher.routes("http")
    assert route.owner is old.owner


@pytest.mark.anyio
async def test_a_replaced_listener_keeps_its_place(dispatcher, client):
    heard = []
    first = Plugin("nkv_first").on(RequestStart, lambda: heard.append("first"), order=1)
    load(dispatcher, first)
    second = Plugin("nkv_second").add("/x", hello)
    load(dispatcher, second.on(RequestStart, lambda: heard.append("second"), order=2))
    dispatcher.on(RequestStart, lambda: heard.append("embedder"))
    dispatcher.on(RequestStart, lambda: heard.append("embedder, early"), priority=-1)
    again = Plugin("nkv_first", 2).on(RequestStart, lambda: heard.append("first again"), order=1)
    load(dispatcher, again, leave=first)
    await client.get()
    assert heard == ["embedder, early", "first again", "second", "embedder"]


@pytest.mark.anyio
async def test_routes_come_and_go_while_a_generation_is_live(dispatcher, client):
    plugin = load(dispatcher, Plugin())
    route = Route("http", "GET", "/late", hello, plugin.owner, timeout=None)
    dispatcher.add_route(route)
    assert await client.get("/late") == "hello"
    with pytest.raises(RouteTaken):
        dispatcher.add_route(route)
    dispatcher.remove_route("http", "GET", "/late", plugin.owner)
    with pytest.raises(PluginNotFound):
        dispatcher.remove_route("http", "GET", "/late", plugin.owner)
    with pytest.raises(NoHandler):
        await client.get("/late")
    dispatcher.switch(leave=plugin.owner)
    with pytest.raises(Stopping):
        dispatcher.add_route(route)
    with pytest.raises(PluginNotFound):
        dispatcher.remove_route("http", "GET", "/late", plugin.owner)


# --- embedders and the node's own events ----------------------------------------------------------


@pytest.mark.anyio
async def test_an_embedder_listens_until_it_ends_that(dispatcher, client):
    heard = []
    off = dispatcher.on(Connect, heard.append)
    event = Connect("127.0.0.1", 1, "http")
    dispatcher.emit(event)
    dispatcher.emit(PluginLoaded("x", 1))
    off()
    off()
    dispatcher.emit(event)
    assert heard == [event]
    assert dispatcher.offences() == []


def test_changes_are_not_told_by_the_bus(dispatcher, client):
    with pytest.raises(PluginInvalid, match="keyspace"):
        dispatcher.on(Change, print)
    load(dispatcher, Plugin().on(Change, lambda change: 1 / 0))
    dispatcher.emit(Change("put", "put", "k", 1, 1, 1))
    assert dispatcher.offences() == []


@pytest.mark.anyio
async def test_a_listener_in_quarantine_is_shown_and_left_out(client):
    dispatcher = client.dispatcher = made(budget=0.01, quarantine_after=2)
    calls = []

    async def hangs(event):
        calls.append(event)
        await anyio.sleep_forever()

    plugin = load(dispatcher, Plugin().add("/x", hello).on(RequestStart, hangs))
    with anyio.fail_after(60):
        for _ in range(4):
            assert await client.get() == "hello"
    assert len(calls) == 2
    (conduct,) = dispatcher.offences()
    assert conduct.owner is plugin.owner
    assert (conduct.event, conduct.calls, conduct.overruns) == ("RequestStart", 2, 2)
    assert conduct.quarantined


def watchdogs():
    return [thread for thread in threading.enumerate() if thread.name == "nkv-watchdog"]


@pytest.mark.anyio
async def test_the_watchdog_comes_and_goes_with_the_plain_listeners(dispatcher):
    async def waits(event):
        pass

    plugin = load(dispatcher, Plugin().on(RequestStart, print))
    assert watchdogs() == []
    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: dispatcher.run(task_status=task_status))
        assert len(watchdogs()) == 1
        load(dispatcher, Plugin("nkv_example", 2).on(RequestStart, waits), leave=plugin)
        assert watchdogs() == []
        off = dispatcher.on(Connect, print)
        assert len(watchdogs()) == 1
        off()
        assert watchdogs() == []
        dispatcher.on(Connect, print)
        tasks.cancel_scope.cancel()
    assert watchdogs() == []


# --- tokens ---------------------------------------------------------------------------------------


@pytest.fixture
def tokens(tmp_path):
    made = {
        "alice": new_token("alice", (Right("a.", write=True),)),
        "bob": new_token("bob", (Right(""),)),
    }
    path = tmp_path / "tokens.toml"
    path.write_text("\n".join(line for _, line in made.values()))
    path.chmod(0o600)
    return Auth.load(path), {name: token for name, (token, _) in made.items()}


@pytest.mark.anyio
async def test_with_tokens_every_request_needs_one(tokens):
    auth, credentials = tokens
    dispatcher = made(auth)
    client, log = Client(dispatcher), []

    async def put(request):
        await request.keyspace.put("b.x", b"")

    load(dispatcher, witness(Plugin().add("/x", hello).add("/put", put), log))
    for path, credential in (("/x", None), ("/x", "wrong"), ("/no", None)):
        with pytest.raises(Unauthenticated):
            await client.get(path, credential=credential)
    assert [what for what, _ in log] == ["start", "complete", "end"] * 3
    assert log[0][1].identity is None
    log.clear()
    assert await client.get(credential=credentials["alice"]) == "hello"
    assert log[0][1].identity.name == "alice"
    with pytest.raises(Forbidden, match=r"write the key or prefix 'b\.x'"):
        await client.get("/put", credential=credentials["alice"])
    with pytest.raises(NoHandler):
        await client.get("/no", credential=credentials["bob"])


@pytest.mark.anyio
async def test_public_routes_answer_without_a_token_and_give_no_right(tokens):
    auth, credentials = tokens
    dispatcher = made(auth)
    client = Client(dispatcher)

    async def read(request):
        assert isinstance(request.keyspace, GuardedKeyspace)
        return request.identity and request.identity.name, await request.keyspace.get("a.x")

    load(dispatcher, Plugin().add("/livez", hello, public=True).add("/r", read, public=True))
    assert await client.get("/livez") == "hello"
    assert await client.get("/livez", credential="wrong") == "hello"
    with pytest.raises(Forbidden):
        await client.get("/r")
    dispatcher.keyspace = Holding()
    assert await client.get("/r", credential=credentials["alice"]) == ("alice", "a.x")


class Holding:
    async def get(self, key, options):
        return key


@pytest.mark.anyio
async def test_a_path_that_ceases_to_be_public_meanwhile_needs_a_token(tokens):
    dispatcher = made(tokens[0])
    client = Client(dispatcher)
    let_go, begun = anyio.Event(), anyio.Event()

    async def waits(event):
        begun.set()
        await let_go.wait()

    load(dispatcher, Plugin("nkv_gate").on(RequestStart, waits))
    old = load(dispatcher, Plugin("nkv_example", 1).add("/x", hello, public=True))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send)
            await begun.wait()
            load(dispatcher, Plugin("nkv_example", 2).add("/x", hello), leave=old)
            old.owner.drain(lambda: None)
            let_go.set()
    assert type(client.replies[-1][1]) is Unauthenticated


# --- figures --------------------------------------------------------------------------------------


def counted(dispatcher):
    requests = dispatcher.measurements()[0]
    assert requests.name == "nkv_requests_total"
    return {(labels["command"], labels["code"]): value for labels, value in requests.samples}


def in_flight(dispatcher):
    (gauge,) = [m for m in dispatcher.measurements() if m.name == "nkv_requests_in_flight"]
    return gauge.samples[0][1]


@pytest.mark.anyio
async def test_requests_are_counted_by_command_and_code(dispatcher, client):
    plugin = Plugin().add("/x", hello, command="x").add("/missing", not_found)
    load(dispatcher, plugin.add("/teapot", lambda request: Reply(418)))
    for path in ("/x", "/x", "/missing", "/teapot", "/no/1", "/no/2"):
        await client.send(path)
    await client.send("/x", "PUT")
    assert counted(dispatcher) == {
        ("x", "ok"): 2,
        ("x", "method_not_allowed"): 1,
        ("/missing", "not_found"): 1,
        ("/teapot", "418"): 1,
        ("", "no_handler"): 2,
    }
    assert in_flight(dispatcher) == 0
    seconds = dispatcher.measurements()[1]
    assert seconds.name == "nkv_request_seconds_total"
    assert all(value >= 0 for _, value in seconds.samples)


@pytest.mark.anyio
async def test_codes_without_end_take_no_memory_without_end(dispatcher, client, monkeypatch):
    monkeypatch.setattr("nkv_core.tally.MOST", 3)
    numbers = iter(range(100))

    async def fails(request):
        raise Rejected(400, f"code_{next(numbers)}")

    load(dispatcher, Plugin().add("/x", fails))
    for _ in range(10):
        await client.send()
    assert counted(dispatcher) == {
        ("/x", "code_0"): 1,
        ("/x", "code_1"): 1,
        ("/x", "code_2"): 1,
        ("other", "other"): 7,
    }
