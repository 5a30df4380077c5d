"""Bodies in the JSON of protobuf messages, read as a gRPC gateway reads them.

Owns the leniencies of such a gateway: either spelling of a field, null for a field that is not
there, unknown fields, text after the first value, an empty body for an empty message. What is
understood differently here and there would be a write that nobody replicates, so whatever is not
surely refused there and not surely understood here is refused with 501.
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NoReturn

from sidecar.core.relationship import canonical_condition
from sidecar.errors import Refused

WHITE_SPACE = " \t\r\n"
MAX_EXACT = 2**53

_CAPITAL = re.compile(r"([A-Z])")


class Malformed(ValueError):
    """No gateway takes this body; the database says so better than we do."""


def not_replicated(message: str) -> Refused:
    """The refusal of what the database might take and other regions could not get."""
    return Refused("not_replicated", message, 501)


def parsed(body: bytes) -> dict[str, Any]:
    """The message in a body. Raises Malformed or Refused("not_replicated")."""
    text = body.decode("utf-8", "surrogateescape").lstrip(WHITE_SPACE)
    if not text:
        return {}
    try:
        message, end = _DECODER.raw_decode(text)
        text[:end].encode()
    except (json.JSONDecodeError, UnicodeEncodeError):
        raise Malformed("the body is not JSON") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, Malformed):
            raise
        raise not_replicated("the body has a number too long or is nested too deeply") from None
    if not isinstance(message, dict):
        raise Malformed("the body is not a JSON object")
    return message


def dumped(message: object) -> bytes:
    """A body."""
    return json.dumps(message, separators=(",", ":")).encode()


def fields(message: object, known: Iterable[str]) -> dict[str, Any]:
    """The fields of a message that are there, under their camelCase names.

    Raises Refused for a field that is not `known`: it may change what is written.
    """
    if message is None:
        return {}
    if not isinstance(message, dict):
        raise Malformed(f"{type(message).__name__} in the place of an object")
    names = _spellings(tuple(known))
    there: dict[str, Any] = {}
    for spelling, value in message.items():
        name = names.get(spelling)
        if name is None:
            raise not_replicated(
                f"the field {json.dumps(spelling[:60])} is not known to this version of the "
                "sidecar, which therefore cannot tell what is written"
            )
        if name in there:
            raise Malformed(f"{name} is there twice")
        if value is not None:
            there[name] = value
    return there


def text(value: object) -> str:
    """A text field."""
    if not isinstance(value, str):
        raise Malformed("something else in the place of text")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Malformed("text with half of a surrogate pair")
    return value


def items(value: object) -> list[Any]:
    """A repeated field."""
    if not isinstance(value, list):
        raise Malformed("something else in the place of a list")
    return value


def carried(condition: object) -> str:
    """The text of a condition. Its numbers are doubles, as in a `google.protobuf.Struct`."""
    try:
        return canonical_condition(_doubles(condition))
    except Refused as refused:
        raise not_replicated(refused.message) from None
    except (OverflowError, RecursionError):
        raise not_replicated("the condition has a number too large or is too deep") from None


def _doubles(value: object) -> object:
    match value:
        case bool():
            return value
        case int() | float():
            number = float(value)
            is_whole = number.is_integer() and abs(number) <= MAX_EXACT
            return int(number) if is_whole else number
        case dict():
            return {key: _doubles(inner) for key, inner in value.items()}
        case list():
            return [_doubles(inner) for inner in value]
        case _:
            return value


@lru_cache
def _spellings(known: tuple[str, ...]) -> dict[str, str]:
    snake = {_CAPITAL.sub(lambda found: "_" + found[1].lower(), name): name for name in known}
    return snake | {name: name for name in known}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    message = dict(pairs)
    if len(message) != len(pairs):
        raise not_replicated("the body has an object with a key twice")
    return message


def _refuse(constant: str) -> NoReturn:
    raise Malformed(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
