"""Who is let in, and what a member that misbehaves comes to."""

import shutil
import socket
import ssl
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.streams.stapled import StapledObjectStream
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nkv_core.errors import BadRequest, SettingsError, StartError
from nkv_core.records import Record, timestamp_at, wall_clock
from nkv_mesh_full.channel import Channel, PeerRefused
from nkv_mesh_full.entries import pack
from nkv_mesh_full.handshake import ClockSkew, SameNode, Terms, accept, check, connect
from nkv_mesh_full.messages import (
    About,
    Batch,
    Greeting,
    Message,
    Place,
    Proof,
    Refusal,
    Start,
    Welcome,
)
from nkv_mesh_full.settings import FullSettings
from nkv_mesh_full.trust import Trust, WrongSecret

SECRET = "a secret of these tests"


def about(node_id=2, *, wall=None, boot=b"2", max_value=1024 * 1024, history="0" * 16):
    now = wall_clock() if wall is None else wall
    return About(
        node_id, "n", "127.0.0.1:9", "", 1, boot, now, 512, max_value, 86400.0, history, 0, None
    )


def terms(node_id=2, secret=SECRET, **changes):
    trust = Trust(FullSettings(secret=secret))
    return Terms(trust, lambda _: about(node_id, **changes), 10_000, 10_000_000)


class Pipe:
    """One end of a connection in memory, which keeps what went through."""

    def __init__(self, stream):
        self._stream = stream
        self.passed = []

    async def send(self, data):
        self.passed.append(data)
        await self._stream.send(data)

    async def receive(self, most=None):
        return await self._stream.receive()

    async def aclose(self):
        await self._stream.aclose()


@asynccontextmanager
async def pipes():
    there, back = (anyio.create_memory_object_stream(100) for _ in range(2))
    one = Pipe(StapledObjectStream(there[0], back[1]))
    two = Pipe(StapledObjectStream(back[0], there[1]))
    try:
        yield one, two
    finally:
        await one.aclose()
        await two.aclose()


@asynccontextmanager
async def shaken(ours, theirs):
    """Both channels after the handshake; raises what either side raised, the acceptor first."""
    async with pipes() as (one, two):
        channels = Channel(one), Channel(two)
        errors = {}

        async def side(name, call):
            try:
                await call()
            except Exception as error:  # noqa: BLE001  # it is looked at
                errors[name] = error
                await channels[0].aclose()
                await channels[1].aclose()

        async def accepted():
            hello = await accept(channels[1], theirs)
            await channels[1].send(Welcome(theirs.about(hello.about.node_id), []))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(side, "accepts", accepted)
            tasks.start_soon(side, "connects", lambda: connect(channels[0], ours, "knock", None))
        yield channels, errors, (one, two)


@pytest.mark.anyio
async def test_two_who_know_the_secret_find_each_other():
    async with shaken(terms(1), terms(2)) as (_, errors, _):
        assert errors == {}


@pytest.mark.anyio
async def test_one_who_does_not_know_the_secret_is_told_nothing():
    async with shaken(terms(1, "another secret, as long"), terms(2)) as (_, errors, (_, two)):
        # The one who connects sees first that the other's proof is none.
        assert isinstance(errors["connects"], WrongSecret)
        assert not any(b"127.0.0.1" in data for data in two.passed)


@pytest.mark.anyio
async def test_a_proof_that_is_made_up_is_refused():
    async with pipes() as (one, two), anyio.create_task_group() as tasks:
        channel = Channel(one)

        async def refuses():
            with pytest.raises(WrongSecret):
                await accept(Channel(two), terms(2))

        tasks.start_soon(refuses)
        await channel.send(Greeting(1, bytes(32)))
        challenge = await channel.receive()
        await channel.send(Proof(challenge.proof))  # the other's own, sent back


@pytest.mark.anyio
async def test_a_frame_that_was_changed_repeated_or_left_out_is_refused():
    for tamper in ("changed", "repeated", "left out"):
        async with shaken(terms(1), terms(2)) as ((ours, theirs), _, (one, two)):
            await ours.send(Refusal("a", "first"))
            await ours.send(Refusal("b", "second"))
            first, second = one.passed[-2:]
            for _ in range(2):
                await two.receive()
            frames = {
                "changed": [first[:-1] + b"x"],
                "repeated": [first, first],
                "left out": [second],
            }[tamper]
            for frame in frames:
                await one.send(frame)
            for _ in frames[:-1]:
                assert (await theirs.receive()).detail == "first"
            with pytest.raises(BadRequest, match="seal"):
                await theirs.receive()


@pytest.mark.anyio
async def test_what_is_too_large_is_refused_before_it_is_read():
    async with pipes() as (one, two):
        await one.send((5000).to_bytes(4, "big") + bytes(16))
        with pytest.raises(BadRequest, match="too large"):
            await Channel(two).receive()


def test_a_clock_an_hour_off_is_refused_and_named():
    own = terms(1)
    now = wall_clock()
    for hour in (3_600_000, -3_600_000):
        with pytest.raises(ClockSkew, match=r"127\.0\.0\.1:9 is 36\d\d\.\d s"):
            check(about(2, wall=now + hour), own, now)
    check(about(2, wall=now + 5000), own, now)
    check(about(2, wall=now - 5000), own, now)


def test_two_nodes_of_one_id_are_refused():
    with pytest.raises(SameNode, match="copied"):
        check(about(2, boot=b"other"), terms(2), wall_clock())


def test_beyond_loopback_a_mesh_needs_a_secret_or_certificates():
    for host in ("0.0.0.0", "10.0.0.1", "::", "example.net"):
        with pytest.raises(StartError, match=r"mesh\.full\.secret"):
            Trust(FullSettings(host=host))
        Trust(FullSettings(host=host, secret=SECRET))
    Trust(FullSettings(host="127.0.0.1"))
    Trust(FullSettings(host="::1"))


def test_a_secret_is_long_enough_and_given_once(tmp_path):
    with pytest.raises(SettingsError, match="16"):
        FullSettings(secret="short")
    with pytest.raises(SettingsError, match="only one"):
        FullSettings(secret=SECRET, secret_file="x")
    with pytest.raises(SettingsError, match="secret_file"):
        Trust(FullSettings(secret_file=str(tmp_path / "missing")))
    with pytest.raises(SettingsError, match="tls_authority"):
        FullSettings(tls_certificate="x")


# --- whole nodes ----------------------------------------------------------------------------------


def dialed(node):
    """A connection to a node's port for others, of somebody who knows the secret."""
    connected = socket.create_connection((node.host, node.mesh_port), timeout=30)
    connected.settimeout(30)
    return connected


class Impostor:
    """Speaks to a real node as a member would, and then misbehaves."""

    def __init__(self, node, node_id=77, secret=SECRET):
        self._node, self._terms = node, terms(node_id, secret)

    async def __aenter__(self):
        self._stream = await anyio.connect_tcp(self._node.host, self._node.mesh_port)
        self.channel = Channel(self._stream)
        try:
            self.welcome = await connect(self.channel, self._terms, "feed", None)
            await self.channel.send(Start(Place("0" * 16, 0, None), complete=True))
        except BaseException:
            await self._stream.aclose()
            raise
        return self

    async def __aexit__(self, *_):
        await self._stream.aclose()

    async def refusal(self):
        """What the node says before it hangs up."""
        with anyio.fail_after(30):
            while True:
                message = await self.channel.receive()
                if isinstance(message, Refusal):
                    return message


def packed(*records):
    return [msgspec.Raw(pack(record)) for record in records]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_member_that_sends_what_cannot_be_is_refused_and_changes_nothing(meshes):
    node = meshes.node("n1").start("memory")
    now = wall_clock()
    good = Record("good", b"x", 0, timestamp_at(now), 77)
    late = Record("late", b"x", 0, timestamp_at(now + 3_600_000), 77)
    bad = {
        "an hour ahead": packed(good, late),
        "malformed": [msgspec.Raw(msgspec.msgpack.encode({"no": "entry"}))],
        "no value": [msgspec.Raw(msgspec.msgpack.encode([0, "key", 1, 77]))],
        "no key": packed(Record("", b"x", 0, timestamp_at(now), 77)),
        "too long": packed(Record("k" * 600, b"x", 0, timestamp_at(now), 77)),
        "too large": packed(Record("k", b"x" * (1024 * 1024 + 1), 0, timestamp_at(now), 77)),
        "never": packed(Record("k", b"x", 0, timestamp_at(now), 77, -5)),
    }
    for entries in bad.values():
        async with Impostor(node) as impostor:
            await impostor.channel.send(Batch(1, None, entries))
            assert (await impostor.refusal()).code in (
                "bad_request",
                "invalid_key",
                "invalid_expiry",
                "value_too_large",
            )
    assert node.records() == {}
    assert node.mesh()["refused"] == len(bad)
    async with Impostor(node) as impostor:  # an old batch again is no harm
        for upto in (1, 1):
            await impostor.channel.send(Batch(upto, None, packed(good)))
        meshes.eventually(lambda: "good" in node.records())
        await impostor.channel.send(Batch(0, None, packed(good)))
        assert (await impostor.refusal()).code == "bad_request"
    assert len(node.records()) == 1


class Load(Message, frozen=True):
    """What the admin socket takes, in a form that no node knows."""

    spec: str


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_member_has_no_verb_to_load_a_plugin_with(meshes, tmp_path):
    node = meshes.node("n1").start("memory")
    before = node.nkv("plugins", "list", "--json").stdout
    plugin, canary = tmp_path / "canary.py", tmp_path / "executed"
    plugin.write_text(f"open({str(canary)!r}, 'w')")
    async with Impostor(node) as impostor:
        await impostor.channel.send(Load(str(plugin)))
        assert (await impostor.refusal()).code == "bad_request"
    assert not canary.exists()
    assert node.nkv("plugins", "list", "--json").stdout == before


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_stranger_is_refused_and_the_port_is_none_of_http(meshes):
    node = meshes.node("n1").start("memory")
    with pytest.raises((WrongSecret, PeerRefused)):
        async with Impostor(node, secret="another secret, as long"):
            pass
    with dialed(node) as connected:
        connected.sendall(b"GET /v1/kv HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = connected.recv(65536)
    assert b"HTTP" not in answer
    assert node.get("a") is None


def test_nodes_with_different_secrets_do_not_become_members(meshes):
    one = meshes.node("n1").start("memory")
    two = meshes.node("n2", **{"mesh.full.secret": "another secret, as long"})
    two.start("memory", join=[one.mesh_address])
    one.put("a", b"1")
    meshes.eventually(lambda: "secret" in two.log())
    assert two.get("a") is None
    assert one.states() == {}
    assert "another secret" not in two.log() + one.log()


def test_a_copied_data_directory_is_refused(meshes):
    one, two = meshes.started(2)
    two.put("a", b"1")
    meshes.all_equal([one, two])
    two.stop()
    copy = meshes.node("copy")
    shutil.copytree(two.data, copy.data)
    two.start()
    meshes.all_up([one, two])
    copy.start(join=[one.mesh_address])
    meshes.eventually(lambda: "copied" in copy.log(), say=copy.log)
    copy.put("of.the.copy", b"1")
    time.sleep(1)
    assert one.get("of.the.copy") is None
    assert one.states() == {"n2": "up"}


def certificate(folder, name, authority=None):
    """A certificate and its key, signed by the authority, or an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer, signer = (subject, key) if authority is None else authority[:2]
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), True)
    )
    signed = builder.sign(signer, hashes.SHA256())
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return subject, key, str(paths[0]), str(paths[1])


def test_certificates_of_one_authority_make_a_mesh_and_no_others(meshes, tmp_path):
    authority, other = (certificate(tmp_path, name) for name in ("authority", "other"))
    meshes.settings = {}

    def node(name, signed_by):
        _, _, pem, key = certificate(tmp_path, name, signed_by)
        return meshes.node(
            name,
            **{
                "mesh.full.tls_certificate": pem,
                "mesh.full.tls_key": key,
                "mesh.full.tls_authority": signed_by[2],
            },
        )

    one = node("n1", authority).start("memory")
    two = node("n2", authority).start("memory", join=[one.mesh_address])
    stranger = node("n3", other).start("memory", join=[one.mesh_address])
    meshes.all_up([one, two])
    one.put("a", b"1")
    meshes.eventually(lambda: two.get("a") == b"1")
    meshes.eventually(lambda: "not reached" in stranger.log())
    assert stranger.get("a") is None
    assert set(one.states()) == {"n2"}
    unsigned = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unsigned.check_hostname = False
    unsigned.verify_mode = ssl.CERT_NONE
    with dialed(one) as connected, unsigned.wrap_socket(connected) as wrapped:
        # In TLS 1.3 a client is told only when it reads that its certificate was missed.
        try:
            told = wrapped.recv(1)
        except (ssl.SSLError, ConnectionError):
            told = b""
        assert told == b""


def test_a_node_whose_clock_is_an_hour_off_is_refused_and_shown(meshes):
    one = meshes.node("n1").start("memory")
    two = meshes.node("n2")
    two.environment |= {
        "PYTHONPATH": str(Path(__file__).with_name("skew")),
        "TEST_CLOCK_SKEW": "3600000",
    }
    two.start("memory", join=[one.mesh_address])
    two.put("from.the.future", b"x")
    meshes.eventually(lambda: "The clock of" in one.log() + two.log())
    assert "ahead of ours" in one.log() + two.log() or "behind ours" in one.log() + two.log()
    assert one.get("from.the.future") is None
    assert set(one.states().values()) <= {"refused", "suspect"}
