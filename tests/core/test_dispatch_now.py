"""Dispatch as a plain function: the same life, which waits for nothing where nothing waits."""

import anyio
import pytest

from nkv_core.auth import Auth, new_token
from nkv_core.contracts.handlers import Request, Route
from nkv_core.contracts.identity import Right
from nkv_core.contracts.owner import Owner
from nkv_core.contracts.settings import BusSettings
from nkv_core.dispatch import Dispatcher, Registration
from nkv_core.errors import (
    ClientGone,
    HandlerFailed,
    NoHandler,
    NotFound,
    Rejected,
    Unauthenticated,
)
from nkv_core.events import RequestComplete, RequestEnd, RequestStart
from nkv_core.loop import Pending

pytestmark = pytest.mark.anyio

LIFE = (RequestStart, RequestComplete, RequestEnd)


class Replies(list):
    def __call__(self, outcome, error, route):
        self.append((outcome, error))


@pytest.fixture
def replies():
    return Replies()


def made(handler, *, timeout=None, auth=None, **more):
    dispatcher = Dispatcher(settings=BusSettings(), auth=auth)
    dispatcher.node = None
    dispatcher.keyspace = None
    owner = Owner("nkv_example")
    route = Route("http", "GET", "/x", handler, owner, timeout=timeout, **more)
    dispatcher.switch(enter=Registration(owner, (route,)))
    dispatcher.example = owner
    return dispatcher


def request(path="/x", **more):
    return Request(transport="http", method="GET", path=path, **more)


def told_of(dispatcher):
    seen = []
    for event in LIFE:
        dispatcher.on(event, seen.append)
    return seen


async def test_what_needs_no_waiting_is_answered_at_once(replies):
    dispatcher = made(lambda request: request.path)
    seen = told_of(dispatcher)
    assert dispatcher.dispatch_now(request(), replies) is None
    assert replies == [("/x", None)]
    assert [type(event) for event in seen] == list(LIFE)
    assert seen[2].outcome == "/x"
    assert seen[2].error is None
    assert dispatcher.example.running == 0


async def test_without_listeners_nothing_is_different(replies):
    dispatcher = made(lambda request: request.path)
    assert dispatcher.dispatch_now(request(), replies) is None
    assert replies == [("/x", None)]
    samples = dispatcher.measurements()[0].samples
    assert [(labels["command"], labels["code"], count) for labels, count in samples] == [
        ("/x", "ok", 1)
    ]


async def test_a_pending_outcome_is_answered_when_it_is_settled(replies):
    pending = Pending()
    dispatcher = made(lambda request: pending)
    seen = told_of(dispatcher)
    assert dispatcher.dispatch_now(request(), replies) is None
    assert replies == []
    assert [type(event) for event in seen] == [RequestStart]
    assert dispatcher.example.running == 1
    pending.settle(7)
    assert replies == [(7, None)]
    assert [type(event) for event in seen] == list(LIFE)
    assert dispatcher.example.running == 0


async def test_a_pending_outcome_that_fails_is_an_error(replies):
    pending = Pending()
    dispatcher = made(lambda request: pending)
    assert dispatcher.dispatch_now(request(), replies) is None
    pending.settle(None, NotFound("gone"))
    ((outcome, error),) = replies
    assert outcome is None
    assert isinstance(error, NotFound)
    assert error.__traceback__ is None


async def test_the_rest_of_an_async_handler_is_to_be_awaited(replies):
    async def handler(request):
        await anyio.lowlevel.checkpoint()
        return 7

    dispatcher = made(handler)
    seen = told_of(dispatcher)
    rest = dispatcher.dispatch_now(request(), replies)
    assert replies == []
    await rest
    assert replies == [(7, None)]
    assert [type(event) for event in seen] == list(LIFE)


@pytest.mark.parametrize("timeout", [60.0, None])
async def test_a_handler_that_is_cancelled_ends_its_request(replies, timeout):
    async def handler(request):
        await anyio.sleep_forever()

    dispatcher = made(handler, timeout=timeout)
    seen = told_of(dispatcher)
    rest = dispatcher.dispatch_now(request(), replies)
    with anyio.move_on_after(0.01):
        await rest
    assert replies == []
    assert isinstance(seen[-1], RequestEnd)
    assert isinstance(seen[-1].error, ClientGone)
    assert dispatcher.example.running == 0


@pytest.mark.parametrize("wait", [False, True])
async def test_an_async_listener_is_heard_before_the_reply(replies, wait):
    dispatcher = made(lambda request: 1)
    heard = []

    async def listener(event):
        await anyio.lowlevel.checkpoint()
        heard.append(list(replies))

    # One that does not look async is not known to be so before it is called.
    call = (lambda event: listener(event)) if wait else listener  # noqa: PLW0108
    dispatcher.on(RequestStart, call)
    dispatcher.on(RequestComplete, call)
    rest = dispatcher.dispatch_now(request(), replies)
    await rest
    assert heard == [[], []]
    assert replies == [(1, None)]


async def test_a_pending_outcome_waits_for_a_listener_that_only_looked_plain(replies):
    pending = Pending()
    dispatcher = made(lambda request: pending)
    done = anyio.Event()

    async def listener(event):
        await anyio.lowlevel.checkpoint()
        event.replace(event.outcome + 1)
        done.set()

    dispatcher.on(RequestComplete, lambda event: listener(event))  # noqa: PLW0108  # looks plain
    async with anyio.create_task_group() as tasks:
        await tasks.start(dispatcher.run)
        assert dispatcher.dispatch_now(request(), replies) is None
        pending.settle(7)
        with anyio.fail_after(30):
            await done.wait()
            while not replies:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert replies == [(8, None)]


async def test_a_listener_may_refuse_and_replace(replies):
    dispatcher = made(lambda request: 1)

    def refuse(event):
        raise Rejected(403, "no")

    off = dispatcher.on(RequestStart, refuse)
    dispatcher.dispatch_now(request(), replies)
    assert replies[0][1].code == "no"
    off()
    dispatcher.on(RequestComplete, lambda event: event.replace(2))
    dispatcher.dispatch_now(request(), replies)
    assert replies[1] == (2, None)


async def test_whatever_a_handler_raises_is_answered(replies, caplog):
    def handler(request):
        raise ValueError("oops")

    made(handler).dispatch_now(request(), replies)
    assert isinstance(replies[0][1], HandlerFailed)
    assert "oops" in caplog.text


async def test_a_reply_that_raises_ends_with_its_error(caplog):
    def reply(outcome, error, route):
        raise ValueError("oops")

    dispatcher = made(lambda request: 1)
    seen = told_of(dispatcher)
    assert dispatcher.dispatch_now(request(), reply) is None
    assert isinstance(seen[-1].error, HandlerFailed)
    assert "oops" in caplog.text


async def test_a_path_without_handler_is_refused(replies):
    rest = made(lambda request: 1).dispatch_now(request("/y"), replies)
    await rest
    assert isinstance(replies[0][1], NoHandler)


async def test_a_token_is_asked_for(replies):
    token, line = new_token("alice", (Right(""),))
    digest = bytes.fromhex(line.split('"')[1 if line.startswith("alice") else 3])
    dispatcher = made(
        lambda request: request.identity.name,
        auth=Auth([(digest, _identity("alice"))]),
    )
    dispatcher.dispatch_now(request(), replies)
    assert isinstance(replies[0][1], Unauthenticated)
    dispatcher.dispatch_now(request(credential=token), replies)
    assert replies[1] == ("alice", None)


def _identity(name):
    from nkv_core.contracts.identity import Identity

    return Identity(name, (Right(""),))


async def test_a_draining_plugin_still_serves_what_began(replies):
    dispatcher = made(lambda request: 1)
    owner = dispatcher.example
    owner.enter("something that runs")
    owner.drain(lambda: None)
    rest = dispatcher.dispatch_now(request(), replies)
    await rest
    assert replies == [(1, None)]
    owner.leave("something that runs")
