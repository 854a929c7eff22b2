"""`nkv bench`: puts a load on a node, or on a peer of it, and measures."""

import asyncio
from pathlib import Path
from typing import Final, Literal

import click
from rich.console import Console
from rich.progress import Progress

from nkv_core.bench import report
from nkv_core.bench.load import Result, run
from nkv_core.bench.speakers import Target
from nkv_core.bench.watching import measure
from nkv_core.bench.workload import Times, Workload
from nkv_core.cli.output import print_json, print_table

_POSITIVE: Final = click.IntRange(min=1)


@click.command()
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@click.option("--seconds", metavar="S", type=click.FloatRange(min=0.1), default=10.0, help="[10]")
@click.option("--warm-up", metavar="S", type=click.FloatRange(min=0), default=1.0, help="[1]")
@click.option("--connections", metavar="N", type=_POSITIVE, default=32, help="[32]")
@click.option(
    "--pipeline", metavar="N", type=_POSITIVE, default=1, help="Requests at once on each.  [1]"
)
@click.option(
    "--reads",
    metavar="SHARE",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Of the operations, from 0 to 1.  [0.5]",
)
@click.option(
    "--value-bytes", metavar="N", type=click.IntRange(min=0), default=100, help="Of a value.  [100]"
)
@click.option("--keys", metavar="N", type=_POSITIVE, default=10_000, help="[10000]")
@click.option(
    "--distribution",
    metavar="NAME",
    type=click.Choice(["uniform", "zipfian"]),
    default="uniform",
    help="Of the keys: uniform or zipfian.  [uniform]",
)
@click.option(
    "--watch",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    help="Notifications as well.  [0]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with a plot.",
)
def bench(  # noqa: PLR0917  # click gives them by name
    urls: tuple[str, ...],
    seconds: float,
    warm_up: float,
    connections: int,
    pipeline: int,
    reads: float,
    value_bytes: int,
    keys: int,
    distribution: Literal["uniform", "zipfian"],
    watch: int,
    as_json: bool,
    html: Path | None,
) -> None:
    """Put a load on each URL in turn, and measure.

    URL is http://HOST:PORT for a node, redis://HOST:PORT for a node or redis-server,
    nkv://HOST:PORT for the socket transport, nats://HOST:PORT for a node behind a NATS server, and
    nats-kv://HOST:PORT for the buckets of that server. Keys begin with `bench.`.
    """
    workload = Workload(
        seconds=seconds,
        warm_up=warm_up,
        connections=connections,
        pipeline=pipeline,
        reads=reads,
        value_bytes=value_bytes,
        keys=keys,
        distribution=distribution,
    )
    targets = [Target(url) for url in urls]
    results: list[Result] = []
    watched: dict[str, Times] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for target in targets:
            bar = progress.add_task(target.url, total=1.0)
            told = lambda share, bar=bar: progress.update(bar, completed=share)  # noqa: E731
            results.append(asyncio.run(run(target, workload, told)))
            if watch:
                watched[target.url] = asyncio.run(measure(target, watch))
    if html is not None:
        html.write_text(report.page(results, watched), "utf-8")
    if as_json:
        print_json(report.as_data(results, watched))
    else:
        print_table(report.COLUMNS, report.rows(results, watched))


commands: Final[list[click.Command]] = [bench]
