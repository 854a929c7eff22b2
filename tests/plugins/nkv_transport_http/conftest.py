"""The transport on real sockets, over a real dispatcher and a real keyspace in memory."""

import datetime
import logging
import re
import socket
import ssl
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest

from nkv_core.contracts.context import TcpAddress
from nkv_core.contracts.owner import Owner
from nkv_core.contracts.settings import BusSettings, KeyspaceSettings
from nkv_core.dispatch import Dispatcher, Registration
from nkv_core.handlers import HandlerCollector
from nkv_core.keyspace.local import LocalKeyspace
from nkv_storage_memory.storage import MemoryStorage
from nkv_transport_http import nkv_handlers, nkv_settings, nkv_transport

DEADLINE = 60  # seconds: nothing here takes as long unless it hangs
#: To read the machine's certificates takes longer than most tests.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class View:
    """As much of a node as handlers see."""

    name = "test"
    node_id = 0x1D

    def __init__(self, dispatcher, keyspace):
        self.dispatcher, self.keyspace = dispatcher, keyspace
        self.ready = True

    async def status(self):
        return {"name": self.name, "keyspace": self.keyspace.status()}

    def measurements(self):
        return [*self.dispatcher.measurements(), *self.keyspace.measurements()]

    def routes(self, listener):
        return self.dispatcher.routes(listener)

    def on(self, event, listener):
        return self.dispatcher.on(event, listener)


class Listening:
    """What a broker gives: duplicates of sockets that stay open."""

    def __init__(self, held):
        self.held = held
        self.addresses = tuple(TcpAddress(*each.getsockname()[:2]) for each in held)

    def sockets(self):
        return [each.dup() for each in self.held]


class Context:
    """As much of a plugin's context as the transport uses."""

    def __init__(self, node, settings, handlers, held, name="nkv_transport_http"):
        self.name, self.node, self.settings = name, node, settings
        self.handlers, self.held = handlers, held
        self.log = logging.getLogger("nkv.plugin.nkv_transport_http")
        self.dispatch = node.dispatcher.dispatch
        self.dispatch_now = node.dispatcher.dispatch_now

    async def listen(self, address):
        if not self.held:
            listening = socket.create_server((address.host, address.port), backlog=512)
            listening.setblocking(False)  # what its duplicates share with it
            self.held.append(listening)
        return Listening(self.held)


class Served:
    """A transport that serves, and what a test asks of it."""

    def __init__(self, node, port, tls, life):
        self.node, self.port, self.tls, self.life = node, port, tls, life
        self.keyspace, self.dispatcher = node.keyspace, node.dispatcher
        self.host = f"127.0.0.1:{port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"

    def client(self, **options):
        """A client that keeps connections, and trusts the test's certificate."""
        trusted = ssl.create_default_context(cafile=self.tls[0]) if self.tls else NO_TLS
        return httpx2.AsyncClient(
            base_url=self.url, timeout=DEADLINE, verify=trusted, trust_env=False, **options
        )

    async def connect(self):
        """A connection without TLS."""
        return Raw(await anyio.connect_tcp("127.0.0.1", self.port))

    async def raw(self, request):
        """All that is answered to these bytes, until the node closes the connection."""
        peer = await self.connect()
        async with peer.stream:
            await peer.stream.send(request)
            return await peer.rest()

    async def stop(self):
        await self.life.stop()

    async def replace(self):
        """Have a next generation take over."""
        last = self.life
        self.life = await last.follow()
        await last.stop()

    def load(self, register, name="other"):
        """Register another plugin's handlers; returns its owner."""
        owner = Owner(name)
        handlers = HandlerCollector(owner, lambda _: frozenset(("websocket", "mount")))
        register(handlers)
        self.dispatcher.switch(enter=Registration(owner, handlers.routes))
        return owner


class Raw:
    """A connection as bytes."""

    def __init__(self, stream):
        self.stream = stream
        self.seen = b""

    async def send(self, data):
        await self.stream.send(data)

    async def until(self, mark):
        """Read up to and with `mark`; what follows stays for later."""
        while mark not in self.seen:
            self.seen += await self.stream.receive()
        before, _, self.seen = self.seen.partition(mark)
        return before + mark

    async def reply(self):
        """One response that has a length: its status, headers and body."""
        head = (await self.until(b"\r\n\r\n")).decode("latin-1")
        status = int(head.split(" ", 2)[1])
        headers = dict(re.findall(r"(?m)^([^:\r\n]+): ?(.*?)\r$", head))
        headers = {name.lower(): value for name, value in headers.items()}
        length = int(headers.get("content-length", 0))
        while len(self.seen) < length:
            self.seen += await self.stream.receive()
        body, self.seen = self.seen[:length], self.seen[length:]
        return status, headers, body

    async def rest(self):
        """All that comes until the end, however it comes."""
        try:
            while True:
                self.seen += await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return self.seen


class Lifetime:
    """Runs one transport, and stops it."""

    def __init__(self, transport, context, deadline, follow):
        self.transport, self.context, self.deadline = transport, context, deadline
        self.follow = follow
        self.begun, self.told, self.ended = anyio.Event(), anyio.Event(), anyio.Event()
        self.scope = anyio.CancelScope()

    async def run(self):
        try:
            with self.scope:
                await self.transport.serve(
                    self.context, started=self.begun.set, stop=self.told, deadline=self.deadline
                )
        finally:
            self.ended.set()

    async def stop(self):
        self.told.set()
        await self.ended.wait()

    async def cancel(self):
        self.scope.cancel()
        await self.ended.wait()


@pytest.fixture(params=["asyncio", "asyncio, hypercorn", "trio"])
def served_by(request):
    """Everything is tested on both servers, the fast lane and Hypercorn."""
    return request.param


@pytest.fixture
def anyio_backend(served_by):
    return served_by.partition(",")[0]


@pytest.fixture
def serving(served_by):
    """Serves while its block runs; settings are those of `transport.http`."""

    @asynccontextmanager
    async def serving(*, auth=None, deadline=5.0, keyspace_settings=None, **settings):
        server = "hypercorn" if "hypercorn" in served_by else "auto"
        settings = nkv_settings()(**{"port": 0, "server": server, **settings})
        dispatcher = Dispatcher(settings=BusSettings(), auth=auth)
        keyspace = LocalKeyspace(
            MemoryStorage(), keyspace_settings or KeyspaceSettings(), node_id=1
        )
        await keyspace.open()
        node = View(dispatcher, keyspace)
        dispatcher.node, dispatcher.keyspace = node, keyspace
        held = []
        try:
            with anyio.fail_after(DEADLINE):
                async with anyio.create_task_group() as tasks:
                    await tasks.start(dispatcher.run)
                    await tasks.start(keyspace.run)
                    life = await begin(node, settings, held, tasks, deadline)
                    tls = (settings.tls_certificate, settings.tls_key)
                    port = held[0].getsockname()[1]
                    served = Served(node, port, tls if all(tls) else None, life)
                    yield served
                    await served.life.stop()
                    tasks.cancel_scope.cancel()
        finally:
            for each in held:
                each.close()
            await keyspace.aclose()

    async def begin(node, settings, held, tasks, deadline, *, last=None):
        owner = Owner("nkv_transport_http")
        collected = HandlerCollector(owner, lambda _: None)
        nkv_handlers(collected)
        transport = nkv_transport("http", settings)

        async def follow():
            return await begin(node, settings, held, tasks, deadline, last=owner)

        life = Lifetime(transport, Context(node, settings, collected, held), deadline, follow)
        tasks.start_soon(life.run)
        await life.begun.wait()
        node.dispatcher.switch(leave=last, enter=Registration(owner, collected.routes))
        collected.live(node.dispatcher)
        return life

    return serving


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Paths of a certificate for localhost and 127.0.0.1 and of its key, made here."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    key_path.write_bytes(private)
    return {"tls_certificate": str(certificate_path), "tls_key": str(key_path)}
