"""Proofs made with a key that all nodes share: what is hashed, and what is taken for a repeat.

The key never travels. Every proof is bound to what it is for, to both nodes, and to something that
is never used again. A proof says that its maker has the key, and no more: whoever has it can be any
node. What follows a session's proof, and a body that is streamed, is not covered.
"""

import hmac
from dataclasses import dataclass
from hashlib import sha256

from sidecar.errors import Refused

MAX_AGE_S = 60.0
"""So far may the clock of whoever signs differ; as far as `max_clock_skew_ms` has it by default."""

WINDOW = 16_384
"""Numbers of one signer that may come out of order; an older one counts as a repeat."""

MAX_SIGNERS = 1_000
"""Processes whose numbers are remembered: nodes, and commands of the last minutes; beyond it new
ones are refused."""

STREAMED = "streamed"
"""In place of the hash of a body that is not known when the request begins."""

_FIELDS = ("node", "run", "number", "at", "body", "proof")
_MAX_TEXT = 512


def proof(key: bytes, *parts: str) -> str:
    """HMAC-SHA256 over the parts, each with its length, in hex."""
    # What the other end says may be any text that JSON can hold.
    raws = [part.encode("utf-8", "surrogatepass") for part in parts]
    text = b"".join(b"%d:%s" % (len(raw), raw) for raw in raws)
    return hmac.new(key, text, sha256).hexdigest()


def is_proof(keys: tuple[bytes, ...], shown: str, *parts: str) -> bool:
    """Whether one of the keys made it. Takes as long whether it fits or not."""
    seen = shown.encode("utf-8", "replace")
    fits = [hmac.compare_digest(proof(key, *parts).encode(), seen) for key in keys]
    return any(fits)


def body_hash(body: bytes | None) -> str:
    return sha256(body or b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Signature:
    """What a signed request says in its header.

    node: who asks. run, number: a process of it, and which of its requests. at: its wall clock in
    milliseconds. body: a hash in hex, or `STREAMED`.
    """

    node: str
    run: str
    number: int
    at: int
    body: str

    def _parts(self, to: str, method: str, target: str) -> tuple[str, ...]:
        mine = (self.node, self.run, str(self.number), str(self.at), self.body)
        return "request", to, method, target, *mine

    def signed(self, key: bytes, to: str, method: str, target: str) -> str:
        """As the value of a header. target: path and query, as in the request line."""
        made = proof(key, *self._parts(to, method, target))
        values = (self.node, self.run, str(self.number), str(self.at), self.body, made)
        return " ".join(f"{name}={value}" for name, value in zip(_FIELDS, values, strict=True))


def opened(keys: tuple[bytes, ...], text: str, here: str, method: str, target: str) -> Signature:
    """A signature that somebody made who has the key. Raises Refused("peer_unauthenticated")."""
    words = text[:_MAX_TEXT].split(" ")
    values = [value for word in words for name, _, value in [word.partition("=")]]
    if [word.partition("=")[0] for word in words] != list(_FIELDS):
        raise unauthenticated("the signature is not of a known form")
    node, run, number, at, body, made = values
    is_plain = all(one.isascii() and one.isdigit() and len(one) < 17 for one in (number, at))
    if not is_plain or not text.isascii():
        raise unauthenticated("the signature is not of a known form")
    signature = Signature(node, run, int(number), int(at), body)
    if not is_proof(keys, made, *signature._parts(here, method, target)):
        raise unauthenticated(
            f"the signature for {node[:80]!r} was not made with the key of {here}, or for another "
            "request or another node (security.peer.shared_key_file)"
        )
    return signature


def unauthenticated(why: str) -> Refused:
    return Refused("peer_unauthenticated", why, 401)


class Repeats:
    """Recognises requests that have come before.

    began_ms: the wall clock when this process began; what was signed before may have been
    answered by the one before it, which remembers nothing any more.
    """

    def __init__(self, began_ms: int) -> None:
        self._began_ms = began_ms
        self._signers: dict[tuple[str, str], _Numbers] = {}

    def check(self, signature: Signature, now_ms: int) -> None:
        """Take note of a request whose proof holds. Raises Refused("peer_unauthenticated")."""
        apart_s = (signature.at - now_ms) / 1000
        if abs(apart_s) > MAX_AGE_S:
            side = "ahead of" if apart_s > 0 else "behind"
            raise unauthenticated(
                f"the request was signed {abs(apart_s):.0f} s {side} the clock of this node, and "
                f"{MAX_AGE_S:.0f} s are allowed: it is an old one sent again, or a clock is wrong "
                "(NTP)"
            )
        if signature.at < self._began_ms:
            raise unauthenticated("the request was signed before this node began; ask again")
        signer = (signature.node, signature.run)
        numbers = self._signers.get(signer)
        if numbers is None:
            numbers = self._remember(signer, now_ms)
        numbers.last_ms = now_ms
        if not numbers.take(signature.number):
            raise unauthenticated(f"a request of {signature.node} came a second time")

    def _remember(self, signer: tuple[str, str], now_ms: int) -> "_Numbers":
        if len(self._signers) >= MAX_SIGNERS:
            # What these have signed is too old by now.
            oldest = now_ms - 2 * int(MAX_AGE_S * 1000)
            self._signers = {s: n for s, n in self._signers.items() if n.last_ms > oldest}
        if len(self._signers) >= MAX_SIGNERS:
            raise unauthenticated(f"more than {MAX_SIGNERS} processes ask at once")
        return self._signers.setdefault(signer, _Numbers())


class _Numbers:
    """Which numbers of one signer have come: a window that slides with the highest."""

    __slots__ = ("_highest", "_taken", "last_ms")

    def __init__(self) -> None:
        self._highest, self._taken, self.last_ms = 0, 0, 0

    def take(self, number: int) -> bool:
        """Whether it had not come yet."""
        if number > self._highest:
            ahead = number - self._highest
            mask = (1 << WINDOW) - 1
            self._taken = 1 if ahead >= WINDOW else (self._taken << ahead | 1) & mask
            self._highest = number
            return True
        bit = 1 << (self._highest - number)
        if self._highest - number >= WINDOW or self._taken & bit:
            return False
        self._taken |= bit
        return True
