"""What a custom script may say: a subset of Lua 5.1 that always ends and depends on nothing else.

The script runs inside the merge, where nothing can stop it, and all nodes must come to the same
answer. So it is a function of the siblings alone: no globals, no state between calls, no loop but
over the siblings, no recursion, no text that grows. What reading cannot tell (that the answer does
not depend on the order) is tried on generated siblings by `store/trial.py`.

`check` also puts two calls into the text, on the lines where they were: `custom.spend()`, which
counts steps, and `custom.less` for `<`, because Lua's own compares texts by the server's locale.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sidecar.errors import Refused

MAX_SCRIPT_BYTES = 8 * 1024
MAX_DEPTH = 32
"""Of blocks and expressions inside each other."""

LIST = "siblings"
"""The name of the parameter that a loop may walk over."""

LIBRARIES = {
    "math": {"abs", "ceil", "floor", "max", "min"},
    "string": {"byte", "find", "len", "sub"},
}
FUNCTIONS = {"newer", "tonumber", "type"}
RESERVED = {"custom", "ipairs", "math", "string", *FUNCTIONS}

_KEYWORDS = frozenset(
    {
        *("and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in"),
        *("local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while"),
    }
)
_TOKEN = re.compile(
    r"""(?P<skip>(?:\s+|--(?!\[=*\[)[^\n]*)*)
    (?:(?P<name>[A-Za-z_]\w*)
    |(?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<text>"(?:[^"\\\n]|\\[abfnrtv\\"'0-9])*"|'(?:[^'\\\n]|\\[abfnrtv\\"'0-9])*')
    |(?P<sign>\.\.\.|\.\.|[=~<>]=|[-+*/%^\#<>=(){}\[\];:,.])
    |(?P<end>\Z)
    |(?P<other>.))""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_BINARY = {
    **dict.fromkeys(["or"], 1),
    **dict.fromkeys(["and"], 2),
    **dict.fromkeys(["<", ">", "<=", ">=", "~=", "=="], 3),
    **dict.fromkeys(["+", "-"], 5),
    **dict.fromkeys(["*", "/", "%"], 6),
}
_UNARY_RANK = 7
_COMPARISONS = {"<": "less", ">": "more", "<=": "at_most", ">=": "at_least"}
_NOT_ALLOWED = {
    "while": "a loop that may not end; walk over the list: for _, one in ipairs(siblings) do",
    "repeat": "a loop that may not end; walk over the list: for _, one in ipairs(siblings) do",
    "..": "texts are compared, not built",
    "^": "powers differ between machines",
    "...": "a function names its parameters",
    ":": "methods are not available",
    "[[": "long brackets are not available",
}


@dataclass(frozen=True, slots=True)
class CustomScript:
    """A script that passed `check`. source: as written; text: as the server runs it.

    texts, numbers: what it compares with; a trial uses them too.
    """

    file: str
    source: str
    text: str
    texts: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()


def check(source: str, file: str) -> CustomScript:
    """Read a script. Raises Refused("bad_script") with the file, the line and what is allowed."""
    if len(source.encode()) > MAX_SCRIPT_BYTES:
        raise Refused("bad_script", f"{file}: is longer than {MAX_SCRIPT_BYTES} bytes")
    text = source.replace("\r\n", "\n")
    for number, line in enumerate(text.split("\n"), 1):
        # To Lua a lone carriage return ends a line, and with it a comment.
        if any(ord(sign) < ord(" ") and sign != "\t" for sign in line):
            raise Refused("bad_script", f"{file}:{number}: holds a control character")
    return _Reader(text, file).script(source)


class _Token(NamedTuple):
    kind: str
    text: str
    skipped: str
    line: int

    @property
    def whole(self) -> str:
        """With the white space and comments before it."""
        return self.skipped + self.text


@dataclass(slots=True)
class _Function:
    """A function that is being read. names: its blocks, each name -> what it stands for."""

    blocks: list[dict[str, str]] = field(default_factory=lambda: [{}])
    loops: int = 0


def _tokens(source: str, file: str) -> Iterator[_Token]:
    at, line = 0, 1
    while True:
        found = _TOKEN.match(source, at)
        assert found is not None
        kind, at = str(found.lastgroup), found.end()
        line += found["skip"].count("\n")
        text = found[kind]
        if kind == "other" or (kind == "sign" and source[at - 1 : at + 1] in ("[[", "[=")):
            what = "long brackets are" if text == "[" else f"{text!r} is"
            raise Refused("bad_script", f"{file}:{line}: {what} not part of a custom script")
        if kind == "name" and text in _KEYWORDS:
            kind = "word"
        yield _Token(kind, text, found["skip"], line)
        if kind == "end":
            return


class _Reader:
    """Reads by recursive descent; each part returns the text that the server is given for it."""

    def __init__(self, source: str, file: str) -> None:
        self._file = file
        self._tokens = list(_tokens(source, file))
        self._at = self._depth = 0
        self._functions = [_Function()]
        self._texts: set[str] = set()
        self._numbers: set[int] = set()

    def script(self, source: str) -> CustomScript:
        text = ""
        while self._is("local"):
            text += self._local()
        if not self._is("return"):
            raise self._refused("a script is local declarations, then: return function(siblings)")
        text += self._take("return")
        if self._is("function"):
            text += self._take("function") + self._function(is_main=True)
        else:
            name = self._next
            if name.kind != "name" or self._meaning(name.text) != "function":
                raise self._refused("a script returns a function")
            text += self._advance().whole
        if self._is(";"):
            text += self._take(";")
        if self._next.kind != "end":
            raise self._refused("nothing follows the returned function")
        text += self._next.skipped
        return CustomScript(
            self._file, source, text, tuple(sorted(self._texts)), tuple(sorted(self._numbers))
        )

    # -- tokens -------------------------------------------------------------------------------

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _is(self, *texts: str) -> bool:
        return self._next.kind in ("word", "sign") and self._next.text in texts

    def _advance(self) -> _Token:
        token = self._next
        self._at += 1
        return token

    def _take(self, text: str) -> str:
        if not self._is(text):
            found = "the end" if self._next.kind == "end" else repr(self._next.text)
            why = f"{text!r} expected, not {found}"
            raise self._refused(_NOT_ALLOWED.get(self._next.text, why))
        return self._advance().whole

    def _name(self) -> _Token:
        if self._next.kind != "name":
            raise self._refused(f"a name expected, not {self._next.text!r}")
        if self._next.text in RESERVED or self._next.text.startswith("__"):
            raise self._refused(f"{self._next.text!r} cannot be the name of something else")
        return self._advance()

    def _refused(self, why: str, token: _Token | None = None) -> Refused:
        line = (token or self._next).line
        return Refused("bad_script", f"{self._file}:{line}: {why}")

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._refused(f"more than {MAX_DEPTH} levels inside each other")

    # -- names --------------------------------------------------------------------------------

    def _meaning(self, name: str) -> str | None:
        """`local`, `function`, `itself` or `list`; with ` outside` when of a function around."""
        for function in reversed(self._functions):
            for block in reversed(function.blocks):
                if name in block:
                    is_own = function is self._functions[-1]
                    is_shared = block[name] in ("function", "itself")
                    return block[name] if is_own or is_shared else f"{block[name]} outside"
        return None

    def _declare(self, name: str, meaning: str = "local") -> None:
        self._functions[-1].blocks[-1][name] = meaning

    # -- statements ---------------------------------------------------------------------------

    def _block(self, *ends: str) -> str:
        self._deeper()
        self._functions[-1].blocks.append({})
        text = ""
        while not self._is(*ends):
            is_last = self._is("return", "break")
            text += self._statement()
            if self._is(";"):
                text += self._take(";")
            if is_last and not self._is(*ends):
                raise self._refused(f"{ends[0]!r} expected after return or break")
        self._functions[-1].blocks.pop()
        self._depth -= 1
        return text

    def _statement(self) -> str:
        token = self._next
        if token.kind == "name":
            return self._assignment()
        compound = {"local": self._local, "if": self._if, "for": self._for}
        if token.kind == "word" and token.text in compound:
            return compound[token.text]()
        if self._is("do"):
            return self._take("do") + self._block("end") + self._take("end")
        if self._is("return"):
            text = self._take("return")
            return text if self._is("end", "else", "elseif", ";") else text + self._expressions()
        if self._is("break") and self._functions[-1].loops:
            return self._take("break")
        why = f"{token.text!r} does not begin a statement" if token.text else "'end' is missing"
        raise self._refused(_NOT_ALLOWED.get(token.text, why))

    def _local(self) -> str:
        text = self._take("local")
        if self._is("function"):
            text += self._take("function")
            name = self._name()
            # Its own name is known inside only to be refused there.
            self._declare(name.text, "itself")
            text += name.whole + self._function()
            self._declare(name.text, "function")
            return text
        names = [self._name()]
        text += names[0].whole
        while self._is(","):
            text += self._take(",")
            names.append(self._name())
            text += names[-1].whole
        if self._is("="):
            text += self._take("=") + self._expressions()
        for name in names:
            self._declare(name.text)
        return text

    def _assignment(self) -> str:
        text = ""
        while True:
            name, meaning = self._next, self._meaning(self._next.text)
            if meaning is None:
                raise self._refused(self._unknown(name.text))
            if meaning != "local":
                why = f"{name.text!r} is not assigned to"
                if meaning.endswith("outside"):
                    why = "what is declared outside the function keeps nothing between calls"
                raise self._refused(why)
            text += self._name().whole
            if self._is(".", "[", "("):
                raise self._refused("a script changes no tables, and calls only for a value")
            if not self._is(","):
                break
            text += self._take(",")
        return text + self._take("=") + self._expressions()

    def _if(self) -> str:
        text = self._take("if") + self._expression() + self._take("then")
        text += self._block("elseif", "else", "end")
        while self._is("elseif"):
            text += self._take("elseif") + self._expression() + self._take("then")
            text += self._block("elseif", "else", "end")
        if self._is("else"):
            text += self._take("else") + self._block("end")
        return text + self._take("end")

    def _for(self) -> str:
        only = f"the only loop is: for index, one in ipairs({LIST}) do"
        begin = self._next
        text = self._take("for")
        names = [self._name()]
        text += names[0].whole
        while self._is(","):
            text += self._take(",")
            names.append(self._name())
            text += names[-1].whole
        if not self._is("in"):
            raise self._refused(only, begin)
        text += self._take("in")
        if self._next.text != "ipairs":
            raise self._refused(only, begin)
        text += self._advance().whole + self._take("(")
        if self._next.text != LIST or self._meaning(LIST) != "list":
            raise self._refused(f"{only}, where {LIST} is a parameter of the function", begin)
        text += self._advance().whole + self._take(")") + self._take("do") + " custom.spend()"
        function = self._functions[-1]
        function.blocks.append({name.text: "local" for name in names})
        function.loops += 1
        text += self._block("end") + self._take("end")
        function.loops -= 1
        function.blocks.pop()
        return text

    def _function(self, *, is_main: bool = False) -> str:
        self._functions.append(_Function())
        text = self._take("(")
        count = 0
        while not self._is(")"):
            if count:
                text += self._take(",")
            name = self._name()
            self._declare(name.text, "list" if name.text == LIST else "local")
            text += name.whole
            count += 1
        if is_main and count != 1:
            raise self._refused(f"the returned function has one parameter, {LIST}")
        text += self._take(")") + " custom.spend()" + self._block("end")
        self._functions.pop()
        return text + self._take("end")

    # -- expressions --------------------------------------------------------------------------

    def _expressions(self) -> str:
        text = self._expression()
        while self._is(","):
            text += self._take(",") + self._expression()
        return text

    def _expression(self, above: int = 0) -> str:
        self._deeper()
        if self._is("not", "#", "-"):
            left = self._advance().whole + self._expression(_UNARY_RANK)
        else:
            left = self._operand()
        while (rank := self._rank()) > above:
            operator = self._advance()
            left = self._combined(left, operator, self._expression(rank))
        self._depth -= 1
        return left

    def _rank(self) -> int:
        if self._is("..", "^", ":"):
            raise self._refused(_NOT_ALLOWED[self._next.text])
        is_operator = self._next.kind in ("word", "sign")
        return _BINARY.get(self._next.text, 0) if is_operator else 0

    @staticmethod
    def _combined(left: str, operator: _Token, right: str) -> str:
        call = _COMPARISONS.get(operator.text)
        if call is None:
            return left + operator.whole + right
        # In brackets: a tail call would lose the line.
        return f" (custom.{call}({left}{operator.skipped},{right}))"

    def _operand(self) -> str:
        token = self._next
        if token.kind == "name":
            return self._reference()
        if self._is("("):
            inside = self._take("(") + self._expression() + self._take(")")
            return inside + self._fields()
        if self._is("{"):
            return self._table()
        if self._is("function"):
            raise self._refused("a function has a name: local function … end")
        if token.kind == "text":
            self._texts.add(_unquoted(token.text))
        elif token.kind == "number":
            is_hex = token.text[:2].lower() == "0x"
            number = int(token.text, 16) if is_hex else float(token.text)
            if number < 2**53 and number == int(number):
                self._numbers.add(int(number))
        elif not self._is("nil", "true", "false"):
            found = repr(token.text) if token.text else "the end"
            raise self._refused(_NOT_ALLOWED.get(token.text, f"a value expected, not {found}"))
        return self._advance().whole

    def _fields(self) -> str:
        text = ""
        while self._is(".", "["):
            if self._is("."):
                text += self._take(".")
                if self._next.kind != "name":
                    raise self._refused(f"a name expected, not {self._next.text!r}")
                text += self._advance().whole
            else:
                text += self._take("[") + self._expression() + self._take("]")
        if self._is("(", ":", "{") or self._next.kind == "text":
            raise self._refused("only named functions are called, as in: beats(a, b)")
        return text

    def _reference(self) -> str:
        token = self._next
        meaning = self._meaning(token.text)
        if meaning in ("function", "itself"):
            if meaning == "itself":
                raise self._refused(f"{token.text!r} calls itself: a script may not recurse")
            self._advance()
            if not self._is("("):
                raise self._refused(f"{token.text!r} is a function: it can only be called", token)
            return token.whole + self._call()[0]
        if meaning is not None:
            return self._advance().whole + self._fields()
        return self._library_call()

    def _library_call(self) -> str:
        token = self._advance()
        name, text = token.text, token.whole
        if name in LIBRARIES and self._is("."):
            text += self._take(".")
            member = self._advance()
            if member.text not in LIBRARIES[name]:
                allowed = ", ".join(f"{name}.{one}" for one in sorted(LIBRARIES[name]))
                raise self._refused(f"{name}.{member.text} is not available; {allowed} are", member)
            text, name = text + member.whole, f"{name}.{member.text}"
        elif name not in FUNCTIONS:
            raise self._refused(self._unknown(name), token)
        if not self._is("("):
            raise self._refused(f"{name!r} is a function: it can only be called", token)
        call, arguments = self._call()
        if name == "string.find" and (len(arguments) != 4 or arguments[3].strip() != "true"):
            # A pattern can take for ever.
            raise self._refused("string.find is called as (text, part, from, true)", token)
        return f"{token.skipped} (custom.newer{call})" if name == "newer" else text + call

    def _unknown(self, name: str) -> str:
        allowed = [*sorted(FUNCTIONS), *(f"{lib}.…" for lib in LIBRARIES)]
        return (
            f"{name!r} is not declared; a script has its siblings, what it declares itself, and "
            f"{', '.join(allowed)}"
        )

    def _call(self) -> tuple[str, list[str]]:
        """The arguments in their brackets, and each by itself."""
        text = self._take("(")
        arguments: list[str] = []
        while not self._is(")"):
            if arguments:
                text += self._take(",")
            arguments.append(self._expression())
            text += arguments[-1]
        return text + self._take(")") + self._fields(), arguments

    def _table(self) -> str:
        self._deeper()
        text = self._take("{")
        while not self._is("}"):
            following = self._tokens[self._at + 1]
            if self._next.kind == "name" and following.kind == "sign" and following.text == "=":
                self._texts.add(self._next.text)
                text += self._advance().whole + self._take("=")
            elif self._is("["):
                text += self._take("[") + self._expression() + self._take("]") + self._take("=")
            text += self._expression()
            if not self._is(",", ";"):
                break
            text += self._advance().whole
        self._depth -= 1
        return text + self._take("}")


def _unquoted(text: str) -> str:
    """A text literal without its quotes; escapes stay, a trial only needs something like it."""
    return text[1:-1]
