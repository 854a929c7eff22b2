"""Which addresses are refused, where connections go, and how long is waited."""

import ipaddress
import socket

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_notifier_webhook.courier import pause
from nkv_notifier_webhook.message import Message
from nkv_notifier_webhook.receiver import DeliveryFailed, Receiver, is_forbidden
from nkv_notifier_webhook.settings import WebhookSettings

INWARD = [
    "127.0.0.1",
    "127.8.8.8",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "240.0.0.1",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fec0::1",
    "ff02::1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "64:ff9b::a00:1",
    "2002:a00:1::",
    "2001:db8::1",
]
MESSAGE = Message("1.x.1", "put", "1.x.1", "k", b"{}")


@pytest.mark.parametrize(
    "address",
    INWARD,
)
def test_addresses_that_only_this_machine_or_its_network_reaches_are_refused(address):
    assert is_forbidden(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_not(address):
    assert not is_forbidden(ipaddress.ip_address(address))


def answer(*addresses):
    async def getaddrinfo(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in addresses]

    return getaddrinfo


@pytest.mark.anyio
async def test_a_name_that_comes_to_lead_inward_is_refused_without_a_connection(
    receiver, monkeypatch
):
    monkeypatch.setattr(anyio, "getaddrinfo", answer("8.8.8.8", "127.0.0.1"))
    settings = WebhookSettings(url=f"http://example.org:{receiver.port}/")
    async with Receiver(settings, None) as sender:
        with pytest.raises(DeliveryFailed, match=r"127\.0\.0\.1 is refused"):
            await sender.post(MESSAGE)
    assert receiver.got == []


@pytest.mark.anyio
async def test_the_connection_goes_to_the_address_that_was_judged(receiver, monkeypatch):
    asked = []

    async def once(host, port, **kind):
        asked.append(host)
        return await answer("127.0.0.1")(host, port, **kind)

    monkeypatch.setattr(anyio, "getaddrinfo", once)
    url = f"http://hook.invalid:{receiver.port}/a?b=c"
    async with Receiver(WebhookSettings(url=url, allow_private=True), None) as sender:
        await sender.post(MESSAGE)
        assert sender.place == f"http://hook.invalid:{receiver.port}"
    assert asked == ["hook.invalid"]  # once for the attempt, and never by the client
    assert receiver.got[0].headers["host"] == f"hook.invalid:{receiver.port}"
    assert receiver.got[0].path == "/a?b=c"


@pytest.mark.anyio
async def test_a_name_without_address_and_a_port_without_listener_are_failed_attempts():
    for url, said in (
        ("http://nowhere.invalid/", "looked up|no answer"),
        (f"http://127.0.0.1:{closed_port()}/", "Connect"),
    ):
        async with Receiver(WebhookSettings(url=url, allow_private=True), None) as sender:
            with pytest.raises(DeliveryFailed, match=said):
                await sender.post(MESSAGE)


@pytest.mark.anyio
async def test_an_attempt_that_is_cancelled_leaves_the_client_usable(receiver):
    receiver.answers = ["hang"]
    settings = WebhookSettings(url=receiver.url, allow_private=True)
    async with Receiver(settings, None) as sender:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sender.post, MESSAGE)
            await receiver.until(lambda: len(receiver.got) == 1)
            tasks.cancel_scope.cancel()
        await sender.post(MESSAGE)
    assert len(receiver.taken) == 1


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@given(
    st.integers(1, 10_000),
    st.floats(0.001, 100),
    st.floats(0.001, 1000),
    st.floats(0, 1e9),
)
def test_waits_grow_up_to_their_bound(attempt, backoff, longest, asked):
    settings = WebhookSettings(url="http://example.org", backoff=backoff, max_backoff=longest)
    waited = pause(settings, attempt, asked)
    assert 0 < waited <= longest
    assert waited >= min(asked, longest)
    assert waited >= min(longest, backoff * 2 ** min(attempt - 1, 20)) / 2
