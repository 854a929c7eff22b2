"""Nodes that are found without being named."""

import sys

import anyio
import pytest

from nkv_core.errors import SettingsError, StartError
from nkv_mesh_full import discovery
from nkv_mesh_full.discovery import DnsDiscovery, MdnsDiscovery

NKV = (sys.executable, "-m", "nkv_core")


async def found_by(one, own, count):
    """The first addresses that a discovery finds."""
    found = set()
    enough = anyio.Event()

    def note(address):
        found.add(address)
        if len(found) == count:
            enough.set()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run, own, note)
            await enough.wait()
            tasks.cancel_scope.cancel()
    return found


@pytest.mark.anyio
async def test_dns_finds_all_addresses_of_a_name_but_the_nodes_own(monkeypatch):
    answers = [OSError("not known yet"), ["10.0.0.1", "10.0.0.2", "fd00::3"]]

    async def getaddrinfo(host, port, **_):
        assert (host, port) == ("mesh.example.net", 8081)
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return [(0, 0, 0, "", (address, port)) for address in answer]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    found = await found_by(DnsDiscovery(["mesh.example.net:8081"], 0.001), "10.0.0.2:8081", 2)
    assert found == {"10.0.0.1:8081", "[fd00::3]:8081"}


@pytest.mark.anyio
async def test_dns_needs_names_and_takes_none_that_is_no_address():
    with pytest.raises(StartError, match=r"mesh\.full\.dns"):
        await DnsDiscovery([]).run("127.0.0.1:1", print)
    with pytest.raises(SettingsError, match="host:port"):
        DnsDiscovery(["without a port"])


@pytest.mark.anyio
async def test_without_its_library_mdns_names_the_pip_command(monkeypatch):
    monkeypatch.setattr(discovery, "find_spec", lambda _: None)
    with pytest.raises(StartError, match=r"pip install 'nkv-core\[mdns\]'"):
        await MdnsDiscovery().run("127.0.0.1:1", print)


def test_nodes_find_each_other_by_the_addresses_of_a_name(meshes):
    one = meshes.node("n1").start("memory")
    two = meshes.node("n2").start(
        "memory",
        **{"mesh.full.discovery": "dns", "mesh.full.dns": f"localhost:{one.mesh_port}"},
    )
    meshes.all_up([one, two])


def test_nodes_find_each_other_on_the_local_network(meshes, new_network):
    pytest.importorskip("zeroconf")
    with new_network() as network:
        nodes = []
        for number in (1, 2):
            name, host = network.host()
            node = meshes.node(f"n{number}", command=("ip", "netns", "exec", name, *NKV), host=host)
            node.start("memory", "--insecure", **{"mesh.full.discovery": "mdns"})
            nodes.append(node)
        try:
            meshes.all_up(nodes)
            nodes[0].put("a", b"1")
            meshes.eventually(lambda: nodes[1].get("a") == b"1")
        finally:
            for node in nodes:
                node.close()
