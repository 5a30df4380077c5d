"""Import and export: whole files into a sidecar and out of it, over its app listener.

Owns files (plain, gzip, standard streams), the order and repetition of requests, and what is said
when something goes wrong: the line, the reason, and where to resume. Requests go one after another,
because the order of transactions is their meaning. What lines mean is `ndjson`'s business.
"""

import contextlib
import gzip
import io
import json
import os
import re
import secrets
import sys
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self, cast
from urllib.parse import urlsplit

import aiohttp
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from sidecar.errors import Refused, SidecarError, Unavailable
from sidecar.ndjson import (
    MAX_LINE_BYTES,
    BadLine,
    Request,
    export_line,
    requests,
    sort_key,
)
from sidecar.security.files import read_lines
from sidecar.security.names import ADMIN_HEADER

LIST_PATH = "/access/v1/relationships/list"
TENANTS_PATH = "/access/v1/tenants"
PAGE_RELATIONSHIPS = 5_000
REQUEST_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10.0
FIRST_CONTACT_S = 2.0
MAX_SILENCE_S = 120.0
"""Of an answer that comes in lines."""

# A sidecar remembers an Idempotency-Key for ten minutes: a repeat after that could apply twice.
MAX_WAIT_S = 300.0
STANDARD_STREAM = "-"

_GZIP_MAGIC = b"\x1f\x8b"
_PLACE = re.compile(r"\b(?:relationships|updates)\[(\d+)\]")
# A request in one of these states may or may not have been carried out.
_TRY_AGAIN = frozenset({429, 502, 503, 504})


class Listener(NamedTuple):
    """What `--url` should be: the name of a listener, and an example."""

    name: str
    example: str


APP = Listener("app listener", "http://127.0.0.1:8080")
ADMIN = Listener("admin listener", "http://127.0.0.1:8082")


def bearer_of(option: str, file: Path | None) -> str | None:
    """The secret in a file that an option or variable names. Raises Refused("bad_secret_file")."""
    return None if file is None else read_lines(option, file, 1)[0].decode()


class _Again(Exception):
    """No answer, or one that asks for patience: the same request is sent again."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Imported:
    """What an import has done so far; `next_line` is where another one would go on."""

    next_line: int = 1
    transactions: int = 0
    inserts: int = 0
    deletes: int = 0
    relationships: int = 0
    requests: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Exported:
    tenants: int
    relationships: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Watching:
    """How a transfer tells a person what it does; each of them may be left as it is."""

    advance: Callable[[int], None] = field(default=lambda count: None)
    warn: Callable[[str], None] = field(default=lambda text: None)


class Sidecar:
    """A client of one listener of a sidecar; an async context manager.

    `wait_s`: how long a request is repeated while nobody answers or the answer is 503. bearer: the
    key of an application, or the token of an operator.
    """

    def __init__(
        self,
        url: str,
        *,
        wait_s: float,
        warn: Callable[[str], None],
        listener: Listener = APP,
        bearer: str | None = None,
    ) -> None:
        self._url, self._listener = check_url(url, listener), listener
        self._wait_s = min(wait_s, MAX_WAIT_S)
        self._warn = warn
        self._headers = {ADMIN_HEADER: "1"} if listener == ADMIN else {}
        if bearer is not None:
            self._headers["Authorization"] = f"Bearer {bearer}"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers=self._headers,
        )
        try:
            await self._first_contact()
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def post(
        self,
        path: str,
        tenant: str,
        body: bytes,
        idempotency_key: str | None = None,
        *,
        limit_s: float = REQUEST_TIMEOUT_S,
    ) -> dict[str, Any]:
        """The answer to a POST, sent again with the same key while there is none within limit_s.

        Raises Refused for what the sidecar does not take, Unavailable after `wait_s`.
        """
        headers = {"Content-Type": "application/json", "X-Tenant": tenant}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        limit = aiohttp.ClientTimeout(total=limit_s, sock_connect=CONNECT_TIMEOUT_S)
        return await self._insist(
            self._wait_s, "POST", path, headers=headers, data=body, timeout=limit
        )

    async def get(self, path: str) -> dict[str, Any]:
        return await self._insist(self._wait_s, "GET", path)

    async def lines(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """The answer to a POST, a line of JSON at a time, however long it takes. It is sent once.

        Raises Refused, and Unavailable where there is none or it breaks off.
        """
        assert self._session is not None
        limit = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=MAX_SILENCE_S
        )
        url = self._url + path
        try:
            async with self._session.post(url, timeout=limit, allow_redirects=False) as response:
                if response.status != 200:
                    headers = dict(response.headers)
                    text = await response.read()
                    _answer(url, response.status, headers, text, self._listener)
                async for line in response.content:
                    yield json.loads(line)
        except _Again as failure:
            raise Unavailable("no_answer", str(failure)) from failure
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unavailable(
                "no_answer", f"{url} broke off its answer: {_reason(error)}"
            ) from error

    async def _first_contact(self) -> None:
        """A wrong address should be said at once, not after a minute of patience."""
        try:
            await self._insist(min(FIRST_CONTACT_S, self._wait_s), "GET", "/health", quietly=True)
        except Unavailable as error:
            if isinstance(error.__cause__, _Again) and error.__cause__.retry_after_s:
                return
            raise Unavailable(
                "no_sidecar",
                f"no sidecar answers at {self._url} ({error.__cause__}); "
                f"start it, or give the address of its {self._listener.name} with --url",
            ) from None

    async def _insist(
        self, wait_s: float, method: str, path: str, *, quietly: bool = False, **content: Any
    ) -> dict[str, Any]:
        back_off = wait_random_exponential(multiplier=0.1, max=5)

        def pause(state: RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            asked = failure.retry_after_s if isinstance(failure, _Again) else 0.0
            return max(back_off(state), min(asked, 5.0))

        def say(state: RetryCallState) -> None:
            if state.attempt_number == 1 and not quietly and state.outcome:
                self._warn(
                    f"{self._url}: {state.outcome.exception()}; trying again for {wait_s:.0f} s"
                )

        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_Again),
            stop=stop_after_delay(wait_s),
            wait=pause,
            before_sleep=say,
            reraise=True,
        )
        try:
            return cast("dict[str, Any]", await attempts(self._once, method, path, **content))
        except _Again as last:
            raise Unavailable(
                "no_answer", f"{self._url} did not take the request within {wait_s:.0f} s: {last}"
            ) from last

    async def _once(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        assert self._session is not None
        try:
            async with self._session.request(
                method, self._url + path, allow_redirects=False, **content
            ) as response:
                text = await response.read()
                headers = dict(response.headers)
                return _answer(self._url + path, response.status, headers, text, self._listener)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            raise _Again(_reason(error)) from error
        except aiohttp.ClientError as error:
            raise Refused("no_answer", f"{self._url} does not speak HTTP: {error}") from error


def check_url(url: str, listener: Listener = APP) -> str:
    """The base of all addresses, or Refused."""
    try:
        parts = urlsplit(url)
        is_base = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_base = False
    if not is_base:
        raise Refused(
            "bad_url", f"--url {url} should be the {listener.name}, such as {listener.example}"
        )
    return url.rstrip("/")


def retold(error: SidecarError, message: str) -> SidecarError:
    """The same failure with more said about it."""
    match error:
        case Refused():
            return Refused(error.code, message, error.status)
        case Unavailable():
            return Unavailable(error.code, message, error.retry_after_s)
        case _:
            return error


# --- import ---------------------------------------------------------------------------------------


async def import_file(
    sidecar: Sidecar, source: "Source", tenant: str, from_line: int, watching: Watching
) -> Imported:
    """Send the lines of `source` from `from_line` on, in order, each request until it is taken.

    Every failure names the line and where to resume. A file imported twice, as a whole or from
    any line on, ends in the same relationships.
    """
    done = Imported(next_line=from_line)
    # Random, so that another import of the same file is a write like any other and not a repeat.
    run = secrets.token_hex(8)
    began = time.monotonic()
    try:
        for request in requests(source.lines(from_line), tenant):
            if request.parts > 1 and request.part == 1:
                watching.warn(
                    f"{source.name}:{request.first_line}: above the limit of one request, "
                    f"sent as {request.parts} transactions"
                )
            key = f"import-{run}-{request.first_line}-{request.part}"
            await sidecar.post(request.path, request.tenant, request.body, key)
            _count(done, request)
            watching.advance(source.position)
    except BadLine as bad:
        raise Refused(bad.code, f"{source.name}:{bad.line}: {bad.message}") from None
    except SidecarError as error:
        place = _place(source.name, request, error.message)
        raise retold(error, f"{place}: {error.message}") from error
    finally:
        done.seconds = time.monotonic() - began
        source.next_line = done.next_line
    watching.advance(source.position)
    return done


def _count(done: Imported, request: Request) -> None:
    done.requests += 1
    done.inserts += request.inserts
    done.deletes += request.deletes
    is_whole = request.part == request.parts
    if not request.is_transaction:
        done.relationships += request.inserts
    elif is_whole:
        done.transactions += 1
    if is_whole:
        done.next_line = request.last_line + 1


def _place(name: str, request: Request, message: str) -> str:
    """The line the sidecar complains about: exact where it names the relationship."""
    named = _PLACE.search(message)
    if named and int(named[1]) < len(request.lines):
        return f"{name}:{request.lines[int(named[1])]}"
    if request.first_line == request.last_line:
        return f"{name}:{request.first_line}"
    return f"{name}:{request.first_line}-{request.last_line}"


class Source:
    """The file of an import, plain or gzip, `-` for standard input; a context manager.

    `position` and `size` count the bytes of the file as it lies on the disk.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.name = "standard input" if path == STANDARD_STREAM else path
        self.size: int | None = None
        self.next_line = 1
        self._raw: io.BufferedReader | None = None
        self._read_bytes = 0

    def __enter__(self) -> Self:
        if self._path == STANDARD_STREAM:
            self._raw = cast("io.BufferedReader", sys.stdin.buffer)
            return self
        try:
            path = Path(self._path)
            self._raw = path.open("rb")
            self.size = path.stat().st_size
            self._raw.peek(1)
        except OSError as error:
            self.__exit__(None, None, None)
            raise Refused(
                "bad_file", f"{self.name}: cannot be read: {error.strerror or error}"
            ) from None
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._raw is not None and self._path != STANDARD_STREAM:
            self._raw.close()

    @property
    def position(self) -> int:
        if self._raw is None or self.size is None:
            return self._read_bytes
        return min(self._raw.tell(), self.size)

    def lines(self, from_line: int) -> Iterator[tuple[int, bytes]]:
        """Number and text of each line. Raises BadLine where the file is damaged."""
        assert self._raw is not None
        number = 1
        try:
            is_gzip = self._raw.peek(2)[:2] == _GZIP_MAGIC
            text = cast("IO[bytes]", gzip.GzipFile(fileobj=self._raw)) if is_gzip else self._raw
            while line := text.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    raise BadLine(number, f"is longer than {MAX_LINE_BYTES} bytes")
                self._read_bytes += len(line)
                if number >= from_line:
                    yield number, line
                number += 1
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadLine(number, f"the gzip file is damaged or cut off: {error}") from None
        except OSError as error:
            raise BadLine(number, f"cannot be read: {error.strerror or error}") from None


# --- export ---------------------------------------------------------------------------------------


async def export_file(
    sidecar: Sidecar, target: str, tenant: str | None, watching: Watching
) -> Exported:
    """Write the relationships of one tenant, or of all when it is None, to `target`, sorted.

    A file appears whole or not at all; `-` is standard output. One tenant at a time is held in
    memory, because the sidecar lists in no order.
    """
    began = time.monotonic()
    tenants = [tenant] if tenant is not None else await _tenants(sidecar)
    written = 0
    with _target(target) as file:
        for each in tenants:
            # Keyed, so that what is listed twice while it moves is written once, as last seen.
            found: dict[tuple[bytes, bytes, bytes], bytes] = {}
            async for relationship in _listed(sidecar, each):
                found[sort_key(relationship)] = export_line(each, relationship)
                watching.advance(written + len(found))
            for key in sorted(found):
                file.write(found[key])
            written += len(found)
    return Exported(len(tenants), written, time.monotonic() - began)


async def _tenants(sidecar: Sidecar) -> list[str]:
    answer = await sidecar.get(TENANTS_PATH)
    tenants = answer.get("tenants")
    if not isinstance(tenants, list) or not all(isinstance(each, str) for each in tenants):
        raise Refused("bad_answer", f"GET {TENANTS_PATH} gave no list of tenants")
    return sorted(tenants)


async def _listed(sidecar: Sidecar, tenant: str) -> AsyncIterator[dict[str, Any]]:
    cursor: str | None = None
    while True:
        asked: dict[str, Any] = {"limit": PAGE_RELATIONSHIPS}
        if cursor is not None:
            asked["cursor"] = cursor
        page = await sidecar.post(LIST_PATH, tenant, json.dumps(asked).encode())
        relationships = page.get("relationships")
        if not isinstance(relationships, list):
            raise Refused("bad_answer", f"POST {LIST_PATH} gave no list of relationships")
        for relationship in relationships:
            yield relationship
        cursor = page.get("cursor")
        if cursor is None:
            return


@contextlib.contextmanager
def _target(target: str) -> Iterator[IO[bytes]]:
    if target == STANDARD_STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder")
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            try:
                if path.suffix == ".gz":
                    # Without name and time: equal relationships make equal files.
                    with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed:
                        yield cast("IO[bytes]", compressed)
                else:
                    yield cast("IO[bytes]", file)
                file.flush()
                Path(file.name).chmod(0o644)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise Refused(
            "bad_file", f"{target}: cannot be written: {error.strerror or error}"
        ) from None


# --- answers --------------------------------------------------------------------------------------


def _answer(
    url: str, status: int, headers: dict[str, str], text: bytes, listener: Listener
) -> dict[str, Any]:
    try:
        content = json.loads(text) if text.strip() else {}
    except ValueError:
        content = {}
    if not isinstance(content, dict):
        content = {}
    if 200 <= status < 300:
        return content
    code = content.get("error", f"http_{status}")
    message = content.get("message", "")
    said = f"{code}: {message}" if message else f"{code} from {url}"
    if status in _TRY_AGAIN:
        asked = headers.get("Retry-After", "")
        raise _Again(said, float(asked) if asked.isascii() and asked.isdigit() else 1.0)
    if status >= 500:
        raise Unavailable(str(code), f"the sidecar failed with {said}")
    if not message and status in (404, 405):
        said = f"HTTP {status} from {url}: --url should be a sidecar's {listener.name}"
    raise Refused(str(code), said, status)


def _reason(error: BaseException) -> str:
    """The innermost cause in few words: `Connection refused`, not a chain of wrappers."""
    causes = list(chain([error], _causes(error)))
    for cause in reversed(causes):
        if isinstance(cause, OSError) and cause.errno:
            return _os_reason(cause)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _os_reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
