"""Load: connections that each send the next requests once they have the answers to the last."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Final, Literal

import msgspec

from nkv_core.bench.speakers import PATIENCE, Target
from nkv_core.bench.workload import Chooser, Times, Workload
from nkv_core.errors import Unreachable

#: Seconds between two calls of whoever is told of the progress.
_TOLD_EVERY: Final = 0.2

Operation = Literal["get", "set"]


class Result(msgspec.Struct, kw_only=True):
    """What a load came to."""

    url: str
    workload: Workload
    seconds: float  #: that were measured
    times: dict[str, Times]  #: by operation

    @property
    def rate(self) -> float:
        """Operations in a second."""
        return sum(times.count for times in self.times.values()) / self.seconds


async def run(
    target: Target, workload: Workload, tell: Callable[[float], None] = lambda _: None
) -> Result:
    """Put the load on, and measure. `tell` is told the share that is done, from 0 to 1.

    Raises `Unreachable` where nobody answers in time, and `Refused`.
    """
    noted: dict[str, Times] = {"get": Times(), "set": Times()}
    try:
        await target.prepare()
        began = perf_counter() + workload.warm_up
        end = began + workload.seconds
        async with asyncio.TaskGroup() as tasks:
            progress = tasks.create_task(_tell(tell, began - workload.warm_up, end))
            asking = [
                tasks.create_task(_ask(target, workload, number, began, end, noted))
                for number in range(workload.connections)
            ]
            await asyncio.wait(asking)
            progress.cancel()
    except (ExceptionGroup, OSError, EOFError) as error:
        raise _cause(target, error) from None
    tell(1.0)
    took = perf_counter() - began
    return Result(
        url=target.url,
        workload=workload,
        seconds=took,
        times={name: times for name, times in noted.items() if times.count},
    )


async def _ask(  # noqa: PLR0917  # one call
    target: Target,
    workload: Workload,
    number: int,
    began: float,
    end: float,
    noted: dict[str, Times],
) -> None:
    speaker, reader, writer = await target.connect()
    chooser = Chooser(workload, number)
    value = b"x" * workload.value_bytes
    try:
        while (sent := perf_counter()) < end:
            chosen = [chooser.next() for _ in range(workload.pipeline)]
            writer.write(
                b"".join(
                    speaker.get(key) if operation == "get" else speaker.set(key, value)
                    for operation, key in chosen
                )
            )
            async with asyncio.timeout(PATIENCE):
                await writer.drain()
                for operation, _ in chosen:
                    await speaker.answer(reader)
                    if sent >= began:
                        noted[operation].note(perf_counter() - sent)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _tell(tell: Callable[[float], None], began: float, end: float) -> None:
    while True:
        tell(min((perf_counter() - began) / (end - began), 1.0))
        await asyncio.sleep(_TOLD_EVERY)


def _cause(target: Target, error: Exception) -> Exception:
    """What of several failures at once is told: the first."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError | EOFError):
        said = str(error) or type(error).__name__
        return Unreachable(f"{target.url} cannot be measured: {said}.")
    return error
