"""`/metrics`: the node's figures in the text form that Prometheus reads."""

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from nkv_core.contracts.context import Measurement
from nkv_core.contracts.handlers import Handlers, Reply, Request

from .openapi import described

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


def register(handlers: Handlers) -> None:
    """Register the path."""
    handlers.add("/metrics", metrics, command="metrics", timeout=None)


@described(answers={200: CONTENT_TYPE.partition(";")[0]})
def metrics(request: Request) -> Reply:
    """What the node measures."""
    return Reply(200, {"Content-Type": CONTENT_TYPE}, exposition(request.node.measurements()))


def exposition(measurements: Iterable[Measurement]) -> bytes:
    """These measurements as text."""
    registry = CollectorRegistry()
    registry.register(_Measured(list(measurements)))
    return generate_latest(registry)


class _Measured(Collector):
    def __init__(self, measurements: list[Measurement]) -> None:
        self._measurements = measurements

    def collect(self) -> Iterator[Metric]:
        """Each measurement as a metric."""
        for measured in self._measurements:
            name = measured.name
            if measured.kind == "counter":
                name = name.removesuffix("_total")
            metric = Metric(name, measured.help, measured.kind)
            sampled = f"{name}_total" if measured.kind == "counter" else name
            for labels, value in measured.samples:
                metric.add_sample(sampled, dict(labels), value)
            yield metric

    def describe(self) -> Iterator[Metric]:
        """Nothing: it is asked for the sake of other collectors, and there are none."""
        return iter(())
