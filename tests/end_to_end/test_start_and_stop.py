"""A node that cannot start says why and touches nothing; one that is told to stop does."""

import json
import shutil
import socket
import ssl
import threading
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs/examples/nkv-example/src/nkv_example"
NO_PATIENCE = 20  # seconds: the deadline for stopping is 10


def test_the_address_is_printed_and_sigterm_ends_with_0(serve):
    node = serve()
    with node.client() as client:
        assert client.get("/healthcheck").json() == {"status": "ok"}
    assert node.stop() == 0


def test_a_request_under_way_is_finished(serve, tmp_path):
    plugin = tmp_path / "slow.py"
    plugin.write_text(
        "import anyio\n"
        "from nkv_core import hookimpl\n"
        "@hookimpl\n"
        "def nkv_handlers(handlers):\n"
        "    handlers.add('/slow', slow)\n"
        "async def slow(request):\n"
        "    print('running', flush=True)\n"
        "    await anyio.sleep(0.5)\n"
        "    return 'done'\n"
    )
    node = serve("--plugin", str(plugin))
    answers = []

    def ask():
        with node.client() as client:
            answers.append(client.get("/slow"))

    thread = threading.Thread(target=ask)
    thread.start()
    assert node.process.stdout.readline() == b"running\n"
    assert node.stop() == 0
    thread.join(30)
    assert answers[0].status_code == 200


STREAM = """
import anyio
from nkv_core import Stream, hookimpl

@hookimpl
def nkv_handlers(handlers):
    handlers.add("/polite", polite)
    handlers.add("/deaf", deaf)

async def ticks():
    while True:
        yield b"tick\\n"
        await anyio.sleep(0.05)

async def polite(request):
    return Stream(ticks(), "text/plain", goodbye=lambda: b"goodbye\\n")

async def forever():
    yield b"tick\\n"
    while True:
        try:
            await anyio.sleep(3600)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3600)

async def deaf(request):
    return Stream(forever(), "text/plain")
"""


def test_open_streams_half_bodies_and_silent_peers_do_not_keep_a_node_from_stopping(
    serve, tmp_path
):
    plugin = tmp_path / "streams.py"
    plugin.write_text(STREAM)
    node = serve("--plugin", str(plugin), "--set", "node.stop_deadline=4")
    peers = [raw(node) for _ in range(4)]
    polite, half_body, preface, never_reads = peers
    polite.sendall(b"GET /polite HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200" in polite.recv(4096)
    half_body.sendall(b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf")
    preface.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    never_reads.sendall(b"GET /polite HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert node.stop(NO_PATIENCE) == 0

    rest = b""
    while piece := polite.recv(65536):
        rest += piece
    assert b"goodbye\n" in rest
    for peer in peers:
        peer.close()


def test_unfinished_tls_handshakes_do_not_keep_a_node_from_stopping(serve, certificate):
    node = serve(
        *("--set", f"transport.http.tls_certificate={certificate[0]}"),
        *("--set", f"transport.http.tls_key={certificate[1]}"),
        *("--set", "node.stop_deadline=4"),
    )
    silent = raw(node)
    context = ssl.create_default_context(cafile=certificate[0])
    idle = context.wrap_socket(raw(node), server_hostname="localhost")
    assert node.stop(NO_PATIENCE) == 0
    silent.close()
    idle.close()


def raw(node):
    return socket.create_connection((node.host, node.port), timeout=30)


@pytest.fixture
def certificate(tmp_path):
    """A certificate for localhost and its key, made here."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_path, key_path


def refused(done, code, *words):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_taken_port_is_named(nkv, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(nkv("serve", "--port", port), 1, port, "address_in_use")


def test_a_data_directory_that_another_node_holds_is_refused(serve, nkv):
    node = serve()
    done = nkv("serve", "--data-dir", str(node.data_dir), "--port", "0")
    refused(done, 1, "data_dir_busy", str(node.process.pid))
    with node.client() as client:
        assert client.get("/healthcheck").status_code == 200


def test_a_data_directory_that_is_a_file_is_refused(nkv, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(nkv("serve", "--data-dir", "file", "--port", "0"), 1, "data_dir_unusable")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_database_is_refused_and_not_overwritten(serve, nkv):
    node = serve()
    with node.client() as client:
        client.put("/v1/kv/a", content="1")
    assert node.stop() == 0
    (database,) = node.data_dir.rglob("cache.db")
    database.write_bytes(b"this is no database" * 1000)
    before = database.read_bytes()
    done = nkv("serve", "--data-dir", str(node.data_dir), "--port", "0")
    refused(done, 1, "data_damaged")
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--storage", "nosuch"), ("nosuch", "diskcache", "memory")),
        (("--plugin", "nosuch_plugin"), ("nosuch_plugin", "nkv_transport_http")),
        (("--set", "transport.http.prot=1"), ("prot", "port")),
        (("--set", "nosuch.section=1"), ("nosuch",)),
        (("--set", "keyspace.max_key_bytes=many"), ("keyspace.max_key_bytes", "flag", "int")),
    ],
)
def test_an_unknown_storage_plugin_or_setting_is_named_with_what_exists(nkv, arguments, words):
    refused(nkv("serve", "--port", "0", *arguments), 2, *words)


def test_a_listener_beyond_loopback_without_tokens_is_refused(nkv):
    refused(nkv("serve", "--host", "0.0.0.0", "--port", "0"), 1, "--insecure", "auth.tokens")


def test_a_node_on_trio_serves_too(serve):
    node = serve("--set", "node.backend=trio")
    with node.client() as client:
        assert client.put("/v1/kv/a", content="1").status_code == 201
        assert client.get("/v1/kv/a").text == "1"
    assert node.stop() == 0


def test_tokens_are_asked_for_once_there_are_any(serve, nkv, tmp_path):
    made = nkv("token", "new", "reader", "--read", "a.", "--file", "tokens")
    assert made.returncode == 0, made.stderr
    token = made.stdout.split()[-1]
    node = serve("--set", f"auth.tokens={tmp_path / 'tokens'}")
    assert token not in (tmp_path / "tokens").read_text()
    bearer = {"Authorization": f"Bearer {token}"}
    with node.client() as client:
        assert client.get("/v1/kv/a.b").status_code == 401
        assert client.get("/v1/kv/a.b", headers=bearer).status_code == 404
        assert client.get("/v1/kv/b", headers=bearer).status_code == 403
        assert client.put("/v1/kv/a.b", content="1", headers=bearer).status_code == 403
        assert client.get("/livez").status_code == 200
    assert token not in node.stderr()


def test_serving_needs_no_home_and_no_terminal(serve):
    node = serve(env={"HOME": "/nonexistent", "TERM": "dumb"})
    assert node.stop() == 0
    assert (node.data_dir / "nkv.json").exists()


def test_a_plugin_given_by_a_relative_path_that_has_the_storage_is_loaded_once(serve, tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "nkv_example")  # where the node is started
    (tmp_path / "nkv.toml").write_text(
        '[plugins]\nload = ["./nkv_example"]\n[storage]\nname = "sqlite"\n'
    )
    node = serve("--config", str(tmp_path / "nkv.toml"))
    listed = json.loads(node.nkv("plugins", "list", "--json").stdout)
    assert [each["generation"] for each in listed if each["name"] == "nkv_example"] == [1]
