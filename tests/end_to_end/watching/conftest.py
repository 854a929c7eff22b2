"""Nodes with every transport and notifier, and subscribers that watch while a block runs."""

from contextlib import asynccontextmanager

import anyio
import pytest

from .place import DEADLINE, Place, Receiver


@pytest.fixture
def anyio_backend():
    """The only one that the clients of Socket.IO run on."""
    return "asyncio"


@pytest.fixture
def placed(serve, tmp_path, clean_env, nats_server):
    """A node that is not started yet, with further settings, beside a NATS server."""
    with Receiver() as receiver:

        def placed(payload=1024 * 1024, **settings):
            config = tmp_path / "nats.conf"
            config.write_text(f"max_payload: {payload}\n")
            return Place(
                serve,
                tmp_path,
                clean_env,
                receiver,
                nats_server("-c", str(config)),
                payload,
                {name.replace("__", "."): value for name, value in settings.items()},
            )

        yield placed


@pytest.fixture
def place(placed):
    """A node that serves."""
    place = placed()
    place.start()
    return place


@pytest.fixture
def watching():
    """Subscribers that all are ready, and watch while the block runs."""

    @asynccontextmanager
    async def watching(subscribers):
        async with anyio.create_task_group() as tasks:
            for subscriber in subscribers:
                tasks.start_soon(subscriber.run)
            with anyio.fail_after(DEADLINE):
                for subscriber in subscribers:
                    await subscriber.ready.wait()
            yield
            tasks.cancel_scope.cancel()

    return watching
