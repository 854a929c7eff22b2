"""The broker's sockets, without a host around it."""

import errno
import socket
import stat
from pathlib import Path

import pytest

from nkv_core.contracts.context import TcpAddress, UnixAddress
from nkv_core.contracts.owner import Owner
from nkv_core.errors import AddressInUse, StartError
from nkv_core.plugin_host import broker as broker_module
from nkv_core.plugin_host.broker import Broker

pytestmark = pytest.mark.anyio

FIRST, SECOND, OTHER = Owner("tcp", 1), Owner("tcp", 2), Owner("other", 1)


@pytest.fixture
def broker():
    made = Broker(insecure=False, authenticated=False)
    yield made
    for owner in (FIRST, SECOND, OTHER):
        made.release(owner)


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


async def test_generations_share_and_the_last_one_closes(broker):
    (first,) = (await broker.listen(FIRST, TcpAddress("127.0.0.1", 0))).addresses
    (second,) = (await broker.listen(SECOND, TcpAddress("127.0.0.1", 0))).addresses
    assert first == second
    assert broker.release(FIRST) == []
    socket.create_connection(("127.0.0.1", first.port)).close()
    assert [held.address for held in broker.release(SECOND)] == [first]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first.port))


async def test_the_number_of_a_free_port_means_the_same_socket(broker):
    (first,) = (await broker.listen(FIRST, TcpAddress("127.0.0.1", 0))).addresses
    (second,) = (await broker.listen(SECOND, TcpAddress("127.0.0.1", first.port))).addresses
    assert first == second


async def test_two_free_ports_are_two_and_are_kept_in_order(broker):
    any_port = TcpAddress("127.0.0.1", 0)
    ports = [(await broker.listen(FIRST, any_port)).addresses[0].port for _ in range(2)]
    assert ports[0] != ports[1]
    again = [(await broker.listen(SECOND, any_port)).addresses[0].port for _ in range(2)]
    assert again == ports


async def test_a_port_of_another_plugin_is_named(broker):
    (address,) = (await broker.listen(FIRST, TcpAddress("127.0.0.1", 0))).addresses
    with pytest.raises(AddressInUse, match="taken by the plugin tcp"):
        await broker.listen(OTHER, address)


@pytest.mark.skipif(not has_ipv6(), reason="the machine has no IPv6")
async def test_ipv6_is_told_in_brackets(broker):
    (address,) = (await broker.listen(FIRST, TcpAddress("::1", 0))).addresses
    with pytest.raises(AddressInUse, match=rf"\[::1\]:{address.port} is taken"):
        await broker.listen(OTHER, address)


async def test_a_name_of_several_addresses_gets_one_port(broker, monkeypatch):
    async def resolve(*args, **kwargs):
        tcp = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*tcp, ("127.0.0.1", 0)), (*tcp, ("127.0.0.2", 0)), (*tcp, ("127.0.0.1", 0))]

    monkeypatch.setattr(broker_module.anyio, "getaddrinfo", resolve)
    addresses = (await broker.listen(FIRST, TcpAddress("several", 0))).addresses
    assert [address.host for address in addresses] == ["127.0.0.1", "127.0.0.2"]
    assert len({address.port for address in addresses}) == 1
    assert (await broker.listen(SECOND, TcpAddress("several", 0))).addresses == addresses


async def test_an_address_that_the_machine_lacks_is_left_out_if_there_is_another(
    broker, monkeypatch
):
    async def resolve(*args, **kwargs):
        tcp = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*tcp, ("127.9.9.9", 0)), (*tcp, ("127.0.0.1", 0))]

    bind = broker_module._bind

    def picky(family, place):
        if place[0] == "127.9.9.9":
            raise OSError(errno.EADDRNOTAVAIL, "not here")
        return bind(family, place)

    monkeypatch.setattr(broker_module.anyio, "getaddrinfo", resolve)
    monkeypatch.setattr(broker_module, "_bind", picky)
    (address,) = (await broker.listen(FIRST, TcpAddress("several", 0))).addresses
    assert address.host == "127.0.0.1"
    monkeypatch.setattr(broker_module, "_bind", lambda family, _: picky(family, ("127.9.9.9", 0)))
    with pytest.raises(StartError, match="no address of this machine"):
        await broker.listen(OTHER, TcpAddress("several", 0))


async def test_half_of_a_name_taken_leaves_nothing_bound(broker, monkeypatch):
    async def resolve(*args, **kwargs):
        tcp = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*tcp, ("127.0.0.2", port)), (*tcp, ("127.0.0.1", port))]

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(broker_module.anyio, "getaddrinfo", resolve)
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port}"):
            await broker.listen(FIRST, TcpAddress("several", port))
    socket.create_server(("127.0.0.2", port)).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "::ffff:10.0.0.1"])
async def test_other_machines_are_kept_out_by_default(broker, host):
    with pytest.raises(StartError, match="--insecure"):
        await broker.listen(FIRST, TcpAddress(host, 0))


async def test_a_mapped_loopback_address_is_loopback():
    assert broker_module._is_loopback("::ffff:127.0.0.1")
    assert broker_module._is_loopback("::1%lo")


async def test_what_cannot_be_resolved_or_is_no_port_is_told(broker):
    with pytest.raises(StartError, match="cannot be resolved"):
        await broker.listen(FIRST, TcpAddress("no host at all", 0))
    with pytest.raises(StartError, match="70000 is no port"):
        await broker.listen(FIRST, TcpAddress("127.0.0.1", 70000))


async def test_a_unix_socket_has_its_mode_and_goes_with_its_last_user(broker, tmp_path):
    path = tmp_path / "it.sock"
    await broker.listen(FIRST, UnixAddress(str(path), 0o660))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert [entry.name for entry in tmp_path.iterdir()] == ["it.sock"]
    await broker.listen(SECOND, UnixAddress(str(path), 0o660))
    broker.release(FIRST)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    broker.release(SECOND)
    assert not path.exists()


async def test_a_duplicate_does_not_know_the_path_that_it_could_unlink(broker, tmp_path):
    listener = await broker.listen(FIRST, UnixAddress(str(tmp_path / "it.sock")))
    (sock,) = listener.sockets()
    with sock:
        assert not Path(sock.getsockname()).exists()


async def test_a_dead_socket_is_replaced_and_a_live_one_is_not(broker, tmp_path):
    path = str(tmp_path / "it.sock")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.listen()
    with pytest.raises(AddressInUse, match="taken by another program"):
        await broker.listen(FIRST, UnixAddress(path))
    stale.close()
    await broker.listen(FIRST, UnixAddress(path))
    with pytest.raises(AddressInUse, match="taken by the plugin tcp"):
        await broker.listen(OTHER, UnixAddress(path))


async def test_what_is_no_socket_is_never_replaced(broker, tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(AddressInUse, match="exists and is no socket"):
        await broker.listen(FIRST, UnixAddress(str(path)))
    assert path.read_text() == "data"


async def test_a_file_in_the_place_of_the_socket_is_left_alone_at_the_end(broker, tmp_path):
    path = tmp_path / "it.sock"
    await broker.listen(FIRST, UnixAddress(str(path)))
    path.unlink()
    path.write_text("somebody else's")
    broker.release(FIRST)
    assert path.read_text() == "somebody else's"


async def test_paths_that_cannot_be_are_told(broker, tmp_path):
    with pytest.raises(StartError, match="too long"):
        await broker.listen(FIRST, UnixAddress(str(tmp_path / ("x" * 100))))
    with pytest.raises(StartError, match="No such file or directory"):
        await broker.listen(FIRST, UnixAddress(str(tmp_path / "none" / "it.sock")))
    await broker.listen(FIRST, UnixAddress(str(tmp_path / "it.sock"), 0o600))
    with pytest.raises(AddressInUse, match="mode 600"):
        await broker.listen(SECOND, UnixAddress(str(tmp_path / "it.sock"), 0o666))
