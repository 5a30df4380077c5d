"""The fencing epoch: which region is the primary, by the last promotion that was heard of."""

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.core.topology import is_id
from sidecar.core.vector import Vector
from sidecar.core.wire import decode_vector, encode_vector
from sidecar.errors import Refused

MAX_NUMBER = 10**9
"""More promotions than anybody makes; a higher number would leave no room for the next one."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """number: of the promotion. region: the primary since. vector: of the node that raised it.

    What other regions have written above `vector` was not shipped before this region began.
    """

    number: int
    region: str
    vector: Vector

    @property
    def order(self) -> tuple[int, bytes]:
        """Epochs are compared by number, then by region."""
        return (self.number, self.region.encode())

    def to_json(self) -> dict[str, object]:
        """As it travels and is stored."""
        return {
            "number": self.number,
            "region": self.region,
            "vector": encode_vector(self.vector),
        }


def is_above(one: Epoch | None, other: Epoch | None) -> bool:
    """Whether the first is the higher one; none is lower than any."""
    return one is not None and (other is None or one.order > other.order)


def decode_epoch(value: object) -> Epoch:
    """An epoch from JSON. Raises Refused("bad_frame") for anything else."""
    wrong = Refused("bad_frame", "an epoch has a whole number, the id of a region and a vector")
    if not isinstance(value, Mapping):
        raise wrong
    number, region = value.get("number"), value.get("region")
    if type(number) is not int or not 0 < number <= MAX_NUMBER:
        raise wrong
    if not isinstance(region, str) or not is_id(region):
        raise wrong
    return Epoch(number, region, decode_vector(value.get("vector")))
