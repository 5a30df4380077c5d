"""SpiceDB's HTTP gateway as rules: routes, statuses and JSON, from the messages' own descriptors.

It says what the Go gateway makes of a message or a gRPC error; it knows no socket and no engine.
JSON of the Go gateway prints what is not set: zero values, empty lists, `null` for messages.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
from authzed.api.v1 import (
    experimental_service_pb2,
    permission_service_pb2,
    schema_service_pb2,
    watch_service_pb2,
)
from google.api import annotations_pb2
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

# Imported for its types, which details of errors are made of.
_DETAILS = error_details_pb2
SERVICES = (
    schema_service_pb2,
    permission_service_pb2,
    watch_service_pb2,
    experimental_service_pb2,
)
STATUSES = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
}
# As Go spells them in an error's text: `rpc error: code = FailedPrecondition desc = …`.
_CODES = {code.name.replace("_", "").lower(): code for code in STATUSES} | {
    "canceled": grpc.StatusCode.CANCELLED
}
_MARK, _MIDDLE = "rpc error: code = ", " desc = "


class GatewayError(Exception):
    """What the engine or the gateway refuses: a gRPC code, a sentence, and details if known."""

    def __init__(self, code: grpc.StatusCode, message: str, details: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details

    @property
    def status(self) -> int:
        return STATUSES[self.code]

    @property
    def body(self) -> dict[str, Any]:
        details = [_shown(one) for one in self.details]
        return {"code": self.code.value[0], "message": self.message, "details": details}

    @classmethod
    def from_text(cls, text: str) -> "GatewayError":
        """Read an error of the library: it says code and sentence, and loses the details."""
        name, found, message = text.removeprefix(_MARK).partition(_MIDDLE)
        if not found or not text.startswith(_MARK):
            return cls(grpc.StatusCode.UNKNOWN, text)
        return cls(_CODES.get(name.lower(), grpc.StatusCode.UNKNOWN), message)

    @classmethod
    def from_call(cls, error: grpc.aio.AioRpcError) -> "GatewayError":
        packed = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        details = tuple(status_pb2.Status.FromString(packed).details) if packed else ()
        return cls(error.code(), error.details() or "", details)


def _shown(detail: Any) -> dict[str, Any]:
    try:
        shown: dict[str, Any] = json_format.MessageToDict(
            detail, always_print_fields_with_no_presence=True
        )
    except TypeError:  # a type that only the gateway knows
        return {"@type": detail.type_url}
    return shown


class Method(NamedTuple):
    """A call: where it is in HTTP, its name in gRPC, and the name of the library's function."""

    path: str
    grpc_name: str
    function: str
    asked: type[Any]
    answered: type[Any]
    is_answered_as_stream: bool
    is_asked_as_stream: bool


def methods() -> Iterator[Method]:
    """All calls that the gateway routes, as the protos' HTTP options name them."""
    for module in SERVICES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                rule = method.GetOptions().Extensions[annotations_pb2.http]
                kind = service.name.removesuffix("Service").lower()
                yield Method(
                    path=rule.post,
                    grpc_name=f"/{service.full_name}/{method.name}",
                    function=f"spicedb_{kind}_{_snake(method.name)}",
                    asked=GetMessageClass(method.input_type),
                    answered=GetMessageClass(method.output_type),
                    is_answered_as_stream=method.server_streaming,
                    is_asked_as_stream=method.client_streaming,
                )


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)[1:]


def parse(method: Method, body: bytes) -> Any:
    """The message of a request body: unknown fields are ignored, an empty body is an empty message.

    Raises GatewayError for what is not JSON of this message.
    """
    try:
        return json_format.Parse(body or b"{}", method.asked(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise GatewayError(grpc.StatusCode.INVALID_ARGUMENT, f"proto: {error}") from error


def to_json(message: Any) -> dict[str, Any]:
    """A message as the Go gateway prints it."""
    shown: dict[str, Any] = json_format.MessageToDict(
        message, always_print_fields_with_no_presence=True
    )
    _add_nulls(message, shown)
    printed: dict[str, Any] = _as_go_prints(shown)
    return printed


def _as_go_prints(shown: Any) -> Any:
    """Numbers in a caveat's context are doubles; Go prints 3.0 as 3."""
    match shown:
        case dict():
            return {name: _as_go_prints(one) for name, one in shown.items()}
        case list():
            return [_as_go_prints(one) for one in shown]
        case float() if shown.is_integer() and abs(shown) < 1e21:
            return int(shown)
    return shown


def encode(shown: object) -> bytes:
    return json.dumps(shown, separators=(",", ":"), ensure_ascii=False).encode()


def _add_nulls(message: Any, shown: dict[str, Any]) -> None:
    """Print messages that are not set as null; members of a oneof are left out."""
    for field in message.DESCRIPTOR.fields:
        is_message = field.message_type is not None
        if not is_message or field.message_type.full_name.startswith("google.protobuf."):
            if is_message and not field.is_repeated and not field.containing_oneof:
                shown.setdefault(field.json_name, None)
            continue
        if field.message_type.GetOptions().map_entry:
            continue
        if field.is_repeated:
            for one, its in zip(getattr(message, field.name), shown[field.json_name], strict=True):
                _add_nulls(one, its)
        elif message.HasField(field.name):
            _add_nulls(getattr(message, field.name), shown[field.json_name])
        elif not field.containing_oneof:
            shown[field.json_name] = None
