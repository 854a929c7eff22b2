"""Report: results as a table, as JSON, and as a page with a plot."""

from collections.abc import Sequence
from html import escape
from typing import Any, Final

import msgspec

from nkv_core.bench.load import Result
from nkv_core.bench.workload import Times

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
COLUMNS: Final = ("target", "operation", "count", "rate", *(f"p{p:g}" for p in PERCENTILES), "max")
_PLOTTED: Final = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9)
_COLOURS: Final = ("#2266aa", "#cc5522", "#338844", "#884499", "#aa8800", "#444444")
_WIDTH: Final = 640
_HEIGHT: Final = 320


def as_data(results: Sequence[Result], watched: dict[str, Times]) -> dict[str, Any]:
    """For JSON. Times are seconds."""
    return {
        "loads": [
            {
                "target": result.url,
                "workload": msgspec.to_builtins(result.workload),
                "seconds": result.seconds,
                "rate": result.rate,
                "operations": {name: figures(times) for name, times in result.times.items()},
            }
            for result in results
        ],
        "watching": {url: figures(times) for url, times in watched.items()},
    }


def figures(times: Times) -> dict[str, float]:
    """What is told of a histogram, in seconds."""
    return {
        "count": times.count,
        "mean": times.total / times.count if times.count else 0.0,
        **{f"p{share:g}": times.percentile(share) for share in PERCENTILES},
        "max": times.longest,
    }


def rows(results: Sequence[Result], watched: dict[str, Times]) -> list[tuple[str, ...]]:
    """For a table. Times are milliseconds."""
    found = [
        _row(result.url, name, times, times.count / result.seconds)
        for result in results
        for name, times in result.times.items()
    ]
    return found + [_row(url, "watch", times, None) for url, times in watched.items()]


def _row(url: str, name: str, times: Times, rate: float | None) -> tuple[str, ...]:
    return (
        url,
        name,
        f"{times.count}",
        "" if rate is None else f"{rate:,.0f}/s",
        *(f"{times.percentile(share) * 1000:.3f}" for share in PERCENTILES),
        f"{times.longest * 1000:.3f}",
    )


def page(results: Sequence[Result], watched: dict[str, Times]) -> str:
    """A page of HTML that needs nothing else: the table, and a plot of all percentiles."""
    lines = {
        f"{result.url} {name}": times for result in results for name, times in result.times.items()
    } | {f"{url} watch": times for url, times in watched.items()}
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows(results, watched)
    )
    return (
        "<!doctype html><meta charset=utf-8><title>nkv bench</title>"
        "<style>body{font:14px sans-serif;margin:2em}td,th{padding:2px 8px;text-align:right}"
        "td:first-child,td:nth-child(2){text-align:left}</style>"
        f"<h1>nkv bench</h1><table><tr>{head}</tr>{body}</table>"
        f"<p>Milliseconds by percentile:</p>{_plot(lines)}"
    )


def _plot(lines: dict[str, Times]) -> str:
    highest = max((times.percentile(_PLOTTED[-1]) for times in lines.values()), default=0) or 1e-3
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 300}" height="{_HEIGHT + 40}">'
    ]
    for at, share in enumerate(_PLOTTED):
        x = at * _WIDTH / (len(_PLOTTED) - 1)
        parts.append(f'<text x="{x:.0f}" y="{_HEIGHT + 20}" font-size="11">p{share:g}</text>')
    for number, (name, times) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(
            f"{at * _WIDTH / (len(_PLOTTED) - 1):.0f},"
            f"{_HEIGHT * (1 - times.percentile(share) / highest):.0f}"
            for at, share in enumerate(_PLOTTED)
        )
        parts.append(f'<polyline fill="none" stroke="{colour}" points="{points}"/>')
        label = f'<text x="{_WIDTH + 30}" y="{20 + 16 * number}" fill="{colour}" font-size="12">'
        parts.append(f"{label}{escape(name)}</text>")
    parts.append(f'<text x="0" y="12" font-size="11">{highest * 1000:.2f} ms</text></svg>')
    return "".join(parts)
