"""A gauge that several parts of a node tell together."""

from collections.abc import Callable, Iterable

from prometheus_client import Gauge

ComeTo = Callable[[Iterable[float]], float]


class Shared:
    """A gauge of which every partition of a node tells its part; shown is what they come to."""

    def __init__(self, gauge: Gauge, come_to: ComeTo) -> None:
        self._gauge, self._come_to = gauge, come_to
        self._told: dict[tuple[str, ...], dict[str, float]] = {}

    def tell(self, partition: str, value: float, *labels: str) -> None:
        told = self._told.setdefault(labels, {})
        told[partition] = value
        (self._gauge.labels(*labels) if labels else self._gauge).set(self._come_to(told.values()))

    def forget(self, partition: str, *labels: str) -> None:
        """A partition has no part in it any more; the series ends with the last of them."""
        told = self._told.get(labels, {})
        told.pop(partition, None)
        if told:
            self._gauge.labels(*labels).set(self._come_to(told.values()))
        elif self._told.pop(labels, None) is not None:
            self._gauge.remove(*labels)

    @property
    def total(self) -> float:
        """The sum over labels of what is shown."""
        return sum(self._come_to(told.values()) for told in self._told.values())
