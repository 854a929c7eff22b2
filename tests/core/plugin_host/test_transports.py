"""Transports in the host: started, replaced without losing a connection, stopped, failed."""

import socket

import anyio
import pytest

from nkv_core.errors import AddressInUse, StartError, Stopping
from nkv_core.events import Connect, Disconnect, PluginFailed

from ...ports import free_port

pytestmark = pytest.mark.anyio

#: Answers each line with the outcome of a request for that path; `/die` ends it.
ECHO = """
import anyio, msgspec, socket
from nkv_core import hookimpl
from nkv_core.contracts.context import TcpAddress, UnixAddress
from nkv_core.contracts.handlers import Request

VERSION = {version}

class Settings(msgspec.Struct):
    host: str = "127.0.0.1"
    port: int = 0
    path: str = ""

@hookimpl
def nkv_settings():
    return Settings

@hookimpl
def nkv_transport(name, settings):
    return Echo(settings) if name == "echo" else None

@hookimpl
def nkv_handlers(handlers):
    handlers.add("/version", lambda request: VERSION, listener="echo")
    handlers.add("/die", lambda request: DIE.set(), listener="echo")

DIE = anyio.Event()

class Echo:
    backends = frozenset({{"asyncio", "trio"}})
    features = frozenset()
    scheme = 'test'

    def __init__(self, settings):
        self.settings = settings

    async def serve(self, ctx, *, started, stop, deadline):
        if self.settings.path:
            address = UnixAddress(self.settings.path)
        else:
            address = TcpAddress(self.settings.host, self.settings.port)
        listener = await ctx.listen(address)
        async with anyio.create_task_group() as connections:
            async with anyio.create_task_group() as accepting:
                for sock in listener.sockets():
                    accepting.start_soon(self.accept, sock, connections, ctx)
                started()
                async with anyio.create_task_group() as ends:
                    async def end(event):
                        await event.wait()
                        ends.cancel_scope.cancel()
                    ends.start_soon(end, stop)
                    ends.start_soon(end, DIE)
                accepting.cancel_scope.cancel()
            if DIE.is_set():
                raise OSError("the transport died")

    async def accept(self, sock, connections, ctx):
        with sock:
            while True:
                await anyio.wait_readable(sock)
                try:
                    connection, peer = sock.accept()
                except BlockingIOError:
                    continue  # another generation was faster
                connections.start_soon(self.talk, connection, ctx)

    async def talk(self, connection, ctx):
        with connection:
            connection.setblocking(False)
            await anyio.wait_readable(connection)
            path = connection.recv(100).decode().strip()
            if not path:
                return
            async def reply(outcome, error, route):
                connection.send(str(error.code if error else outcome).encode())
            await ctx.dispatch(Request(transport="echo", method="GET", path=path), reply)
"""
SECTION = "transport.echo"


@pytest.fixture
def echo(write):
    def to(version=1, name="nkv_transport_echo.py"):
        return write(name, ECHO.format(version=version))

    return to


async def call(address, path):
    if isinstance(address, str):
        stream = await anyio.connect_unix(address)
    else:
        stream = await anyio.connect_tcp("127.0.0.1", address)
    async with stream:
        await stream.send(path.encode())
        return (await stream.receive()).decode()


async def test_a_transport_serves_and_tells_when_it_is_open_and_closed(serving, echo):
    async with serving() as it:
        before = it.residue()
        info = await it.host.load(echo())
        assert info.kinds == ("transport", "handlers")
        (opened,) = it.seen(Connect)
        assert (opened.host, opened.transport) == ("127.0.0.1", "echo")
        assert await call(opened.port, "/version") == "1"
        await it.host.unload("nkv_transport_echo")
        (closed,) = it.seen(Disconnect)
        assert (closed.host, closed.port, closed.error) == ("127.0.0.1", opened.port, None)
        with pytest.raises(OSError, match="All connection attempts failed"):
            await call(opened.port, "/version")
        assert it.residue() == before


async def test_a_replacement_keeps_the_port_and_loses_no_new_connection(serving, echo):
    async with serving() as it:
        await it.host.load(echo(0))
        (opened,) = it.seen(Connect)
        answers = []
        done = anyio.Event()

        async def ask_on():
            while not done.is_set():
                answers.append(await call(opened.port, "/version"))

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask_on)
            for version in range(1, 21):
                echo(version)
                await it.host.replace("nkv_transport_echo")
            done.set()
        assert await call(opened.port, "/version") == "20"
        assert len(answers) > 20
        assert set(answers) <= {str(version) for version in range(21)}
        await it.quiet()
        assert len(it.seen(Connect)) == 1  # the listener was open all the time
        assert it.seen(Disconnect) == []


async def test_queued_connections_survive(serving, write):
    """The broker's socket keeps the queue: the next generation accepts what the last did not."""
    source = """
        import anyio
        from nkv_core import hookimpl
        from nkv_core.contracts.context import TcpAddress

        ACCEPTS = {accepts}

        @hookimpl
        def nkv_transport(name):
            return Transport()

        class Transport:
            backends = frozenset({{"asyncio", "trio"}})
            features = frozenset()
            scheme = 'test'

            async def serve(self, ctx, *, started, stop, deadline):
                (sock,) = (await ctx.listen(TcpAddress("127.0.0.1", 0))).sockets()
                started()
                with sock:
                    if ACCEPTS:
                        for _ in range(200):
                            await anyio.wait_readable(sock)
                            connection, _ = sock.accept()
                            connection.send(b"here")
                            connection.close()
                    await stop.wait()
    """
    async with serving() as it:
        path = write("queue_keeper.py", source.format(accepts=False))
        await it.host.load(path)
        (opened,) = it.seen(Connect)
        waiting = [socket.create_connection(("127.0.0.1", opened.port)) for _ in range(200)]
        write("queue_keeper.py", source.format(accepts=True))
        await it.host.replace("queue_keeper")
        for connection in waiting:
            with connection:
                connection.setblocking(False)
                await anyio.wait_readable(connection)
                assert connection.recv(10) == b"here"


async def test_unix_path_survives_old_close(serving, echo, tmp_path):
    path = str(tmp_path / "echo.sock")
    async with serving({SECTION: {"path": path}}) as it:
        await it.host.load(echo(1))
        assert await call(path, "/version") == "1"
        echo(2)
        await it.host.replace("nkv_transport_echo")
        await it.quiet()
        assert await call(path, "/version") == "2"
        await it.host.unload("nkv_transport_echo")
        assert not (tmp_path / "echo.sock").exists()
        assert [(e.host, e.port) for e in it.seen(Connect)] == [(path, 0)]


async def test_a_transport_moved_to_another_port_tells_so(serving, echo):
    sections = {SECTION: {"port": 0}}
    async with serving(sections) as it:
        await it.host.load(echo(1))
        first = it.seen(Connect)[0].port
        port = free_port()
        await it.host.replace("nkv_transport_echo", settings={"port": port})
        await it.quiet()
        assert [event.port for event in it.seen(Connect)] == [first, port]
        assert [event.port for event in it.seen(Disconnect)] == [first]
        assert await call(port, "/version") == "1"


async def test_settings_given_with_a_plugin_are_those_of_its_replacements(serving, echo):
    async with serving() as it:
        port = free_port()
        await it.host.load(echo(1), {"port": port})
        await it.host.replace("nkv_transport_echo")
        assert await call(port, "/version") == "1"


async def test_a_transport_that_dies_fails_its_plugin(serving, echo):
    async with serving() as it:
        before = it.residue()
        await it.host.load(echo())
        (opened,) = it.seen(Connect)
        await call(opened.port, "/die")
        while not it.seen(Disconnect):
            await anyio.sleep(0.002)
        (failed,) = it.seen(PluginFailed)
        assert "OSError: the transport died" in str(failed.error)
        assert it.seen(Disconnect)[0].error is failed.error
        (info,) = it.host.plugins()
        assert info.state == "failed"
        assert "the transport died" in info.error
        await it.host.replace("nkv_transport_echo")
        assert await call(it.seen(Connect)[1].port, "/version") == "1"
        await it.host.unload("nkv_transport_echo")
        await it.quiet()
        assert it.residue() == before


async def test_a_port_that_is_taken_is_named(serving, echo):
    async with serving() as it:
        before = it.residue()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(AddressInUse, match=f"127.0.0.1:{port} is taken by another program"):
                await it.host.load(echo(), {"port": port})
        assert it.residue() == before


async def test_beyond_loopback_needs_tokens_or_insecure(serving, echo):
    sections = {SECTION: {"host": "0.0.0.0"}}
    async with serving(sections) as it:
        with pytest.raises(StartError, match=r"set auth\.tokens, or allow it with --insecure"):
            await it.host.load(echo())
    for allowed in ({"insecure": True}, {"authenticated": True}):
        async with serving(sections, **allowed) as it:
            await it.host.load(echo())
            assert it.seen(Connect)[0].host == "0.0.0.0"


async def test_a_transport_that_does_not_stop_is_ended_at_its_deadline(serving, write, caplog):
    source = """
        import anyio
        from nkv_core import hookimpl

        @hookimpl
        def nkv_transport(name):
            return Transport()

        class Transport:
            backends = frozenset({"asyncio", "trio"})
            features = frozenset()
            scheme = 'test'

            async def serve(self, ctx, *, started, stop, deadline):
                started()
                await anyio.sleep_forever()
    """
    async with serving(transport_drain_deadline=0.1) as it:
        before = it.residue()
        await it.host.load(write("lasting.py", source))
        await it.host.unload("lasting")
        assert it.residue() == before
    assert "lasting generation 1> was drained no longer than" in caplog.text


async def test_mounts_are_for_transports_that_can_do_it(serving, echo, write):
    source = """
        from nkv_core import hookimpl

        @hookimpl
        def nkv_handlers(handlers):
            handlers.mount("/app", print, listener="echo")
    """
    async with serving() as it:
        await it.host.load(echo())
        with pytest.raises(Exception, match="no mount"):
            await it.host.load(write("mounts.py", source))


async def test_a_listener_of_a_closed_plugin_gives_no_sockets(serving, write):
    source = """
        from contextlib import asynccontextmanager
        from nkv_core import hookimpl
        from nkv_core.contracts.context import TcpAddress

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            listener = await ctx.listen(TcpAddress("localhost", 0))
            ctx.handlers.add("/listener", lambda request: listener)
            yield
    """
    async with serving() as it:
        await it.host.load(write("listens.py", source))
        listener = await it.ask("/listener")
        addresses = listener.addresses
        assert len({address.port for address in addresses}) == 1
        for sock in listener.sockets():
            assert sock.getblocking() is False
            sock.close()
        assert len(it.seen(Connect)) == len(addresses)
        await it.host.unload("listens")
        with pytest.raises(Stopping):
            listener.sockets()
