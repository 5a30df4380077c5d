"""Where the settings come from: one YAML file, the environment above it, checked as a whole.

Owns reading and which source is the stronger, the words of every complaint, and what this release
runs. What a setting may be is in `settings`; what it does is the business of the part that
receives it.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from sidecar.core.topology import spell
from sidecar.errors import Refused
from sidecar.settings import (
    COMMAND_LINE,
    ENVIRON,
    ENVIRONMENT,
    FILE,
    Agent,
    Config,
    DatabaseSettings,
    Listen,
    Log,
    Named,
    RedisSettings,
    Replication,
    bad_config,
    first_node,
    resolve_node,
)
from sidecar.values import Address

__all__ = [
    "Address",
    "Agent",
    "Config",
    "DatabaseSettings",
    "Listen",
    "Log",
    "RedisSettings",
    "Replication",
    "checked",
    "default_config",
    "load",
]

# More than any topology needs; a file above it is refused unread.
MAX_FILE_BYTES = 1 << 20

# -- reading ---------------------------------------------------------------------------------------


def load(
    path: Path | None, *, node: str | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """Read the settings: defaults, below the file, below the environment, below `node` (--node).

    The result names its node and the local region is the node's. Raises Refused("bad_config") with
    one line that names the setting, and the file or the variable it stands in.
    """
    variables = _upper(environ or {})
    try:
        written = {} if path is None else _read(path)
        config = _validated(written, _from_environment(variables), variables)
        settled = _beside(path, _settled(config, node, variables))
        _refuse_clashes(settled)
    except Refused as refused:
        raise _naming(path, refused) from None
    return settled


def load_some_node(path: Path, *, environ: Mapping[str, str] | None = None) -> Config:
    """The settings as one of the nodes has them, whichever the file or the environment names.

    For what concerns the whole deployment. Raises as `load` does.
    """
    variables = _upper(environ or {})
    try:
        config = _validated(_read(path), _from_environment(variables), variables)
    except Refused as refused:
        raise _naming(path, refused) from None
    return load(path, node=first_node(config) if config.node is None else None, environ=environ)


def checked(written: Mapping[str, Any]) -> Config:
    """The settings of a program that has no file: `written` above the defaults, nothing else.

    Raises Refused("bad_config") as `load` does.
    """
    return _validated(written, {}, {})


def default_config(environ: Mapping[str, str] | None = None) -> Config:
    """The settings without a file: one region, one node, an embedded store in ./data."""
    return load(None, environ=environ)


def _naming(path: Path | None, refused: Refused) -> Refused:
    """The same refusal with its file, unless it names where the setting comes from."""
    names_its_source = (f"{path}: ", f"{ENVIRONMENT}__", "--")
    if path is None or refused.message.startswith(names_its_source):
        return refused
    return bad_config(f"{path}: {refused.message}")


def _settled(config: Config, node: str | None, variables: Mapping[str, str]) -> Config:
    variable = f"{ENVIRONMENT}__NODE"
    if node is not None:
        named = Named(node, "--node", COMMAND_LINE)
    elif variable in variables:
        named = Named(config.node, variable, ENVIRON)
    else:
        named = Named(config.node, "node", FILE)
    from_environ = f"{ENVIRONMENT}__REPLICATION__LOCAL_REGION" in variables
    this = resolve_node(config, named, ENVIRON if from_environ else FILE)
    replication = config.replication.model_copy(update={"local_region": str(this.region)})
    return config.model_copy(update={"node": str(this.id), "replication": replication})


def _beside(path: Path | None, config: Config) -> Config:
    """The paths of other files count from the folder of this one, where there is one."""
    if path is None:
        return config
    replication, database, log = config.replication, config.database, config.log
    if replication.custom_script is not None:
        script = path.parent / replication.custom_script
        replication = replication.model_copy(update={"custom_script": script})
    if database is not None and database.token_file is not None:
        token_file = path.parent / database.token_file
        database = database.model_copy(update={"token_file": token_file})
    if log.file is not None:
        log = log.model_copy(update={"file": path.parent / log.file})
    security = config.security and config.security.beside(path.parent)
    changed = {"replication": replication, "database": database, "log": log, "security": security}
    return config.model_copy(update=changed)


def _refuse_clashes(config: Config) -> None:
    peer = "listen.peer" if config.listen.peer else f"the endpoint of {config.this_node.id}"
    listeners = {
        "listen.app": config.app_address,
        peer: config.peer_address,
        "listen.admin": config.admin_address,
    }
    for (one, address), (other, taken) in combinations(listeners.items(), 2):
        if address.clashes(taken):
            raise bad_config(
                f"{other}: {taken} is the address of {one} already; they need two ports"
            )


class _Loader(yaml.SafeLoader):
    """SafeLoader; `_read` looks at its nodes before they become values."""


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise bad_config(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise bad_config(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
    try:
        return _parsed(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise bad_config(f"{path}: is not UTF-8 (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise bad_config(f"{path}: {where}{_one_line(error.problem or 'is not YAML')}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise bad_config(f"{path}: is not YAML: {_one_line(str(error))}") from None


def _parsed(text: str) -> dict[str, Any]:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return {}
        _refuse_duplicates(root)
        content = loader.construct_document(root)
    finally:
        loader.dispose()
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise bad_config("should be a mapping of settings, such as 'replication:'")
    return content


def _refuse_duplicates(root: yaml.Node) -> None:
    # YAML lets the last one win in silence, so half of a block could be without effect.
    waiting, visited = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in visited or not isinstance(node, yaml.CollectionNode):
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    text = f"the key {key.value!r} is there twice"
                    raise yaml.MarkedYAMLError(problem=text, problem_mark=key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
                waiting.append(value)
        else:
            waiting.extend(node.value)


# -- the environment -------------------------------------------------------------------------------


class _Settings(Config, BaseSettings):
    """Config as pydantic-settings wants to see it; never instantiated."""

    model_config = SettingsConfigDict(extra="forbid")


class _Environment(EnvSettingsSource):
    """The nested variables of a given environment, as a mapping like the file's."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(_Settings, env_prefix=f"{ENVIRONMENT}__", env_nested_delimiter="__")
        self.env_vars = {name.lower(): text for name, text in variables.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        # Text that is no JSON stays text: the check of the whole then names its place.
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def _upper(environ: Mapping[str, str]) -> dict[str, str]:
    """Our variables; an empty value counts as unset."""
    named = {name.upper(): text for name, text in environ.items() if text != ""}
    return {name: text for name, text in named.items() if name.startswith(f"{ENVIRONMENT}__")}


def _from_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    _refuse_below_values(variables)
    settings = _Environment(variables)()
    replication = settings.get("replication")
    if not isinstance(replication, dict):
        return settings
    # The short names of the seed; the nested ones are the stronger.
    short = {name: replication.pop(name) for name in Agent.model_fields if name in replication}
    agent = replication.get("agent", {})
    if short and isinstance(agent, dict):
        replication["agent"] = {**short, **agent}
    return settings


def _refuse_below_values(variables: Mapping[str, str]) -> None:
    """Refuse `INFERADB__NODE__X`: the settings library would pass over it in silence."""
    for name in variables:
        _, root, *rest = name.split("__")
        field = Config.model_fields.get(root.lower())
        if field is not None and rest and _section_of(field) is None:
            raise bad_config(f"{name}: unknown setting; {root.lower()} has nothing below it")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of the section, where the field is one."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _merged(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    """Section by section; lists and single values are replaced."""
    merged = dict(weak)
    for key, value in strong.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged


# -- complaints ------------------------------------------------------------------------------------


def _validated(
    written: Mapping[str, Any], environment: Mapping[str, Any], variables: Mapping[str, str]
) -> Config:
    try:
        return Config.model_validate(_merged(written, environment))
    except ValidationError as error:
        first, *others = _complaints(error, variables)
    more = f" (and {len(others)} more)" if others else ""
    raise bad_config(f"{first}{more}")


def _complaints(error: ValidationError, variables: Mapping[str, str]) -> Iterator[str]:
    details = error.errors(include_url=False, include_input=False)
    # A misspelt setting is the reason why another one is missing.
    details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
    for detail in details:
        if detail["type"] == "relations":
            for place, text in detail["ctx"]["problems"]:
                yield f"{_spelled(place, variables)}: {text}"
        else:
            place = tuple(step for step in detail["loc"] if step != "[key]")
            yield f"{_spelled(place, variables)}: {_explained(detail, place)}"


def _spelled(place: Sequence[str | int], variables: Mapping[str, str]) -> str:
    """The path of a setting, and the variable it comes from when it is not the file."""
    words = [str(step).upper() for step in place]
    names = ["__".join([ENVIRONMENT, *words[:n]]) for n in range(len(words), 0, -1)]
    if words[:2] == ["REPLICATION", "AGENT"] and len(words) > 2:
        names.insert(1, f"{ENVIRONMENT}__REPLICATION__{words[2]}")
    variable = next((name for name in names if name in variables), None)
    return f"{spell(place)} ({variable})" if variable else spell(place)


EXPLANATIONS = {
    "missing": "is required",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "int_parsing_size": "should be a smaller number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "string_type": "should be text; in YAML put it in quotes",
    "string_too_short": "should not be empty",
    "path_type": "should be the path of a file",
    "tuple_type": "should be a list",
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping of settings",
    "model_attributes_type": "should be a mapping of settings",
    "invalid_key": "should be text; in YAML put it in quotes",
}


def _explained(detail: ErrorDetails, place: Sequence[str | int]) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return _unknown(place)
        case "greater_than_equal":
            return f"should be at least {context['ge']}"
        case "less_than_equal":
            return f"should be at most {context['le']}"
        case "enum" | "literal_error":
            return f"should be one of {context['expected']}"
        case kind:
            return EXPLANATIONS.get(kind, _one_line(detail["msg"]))


def _unknown(place: Sequence[str | int]) -> str:
    """Say what would have been allowed at the place of an unknown setting."""
    section: type[BaseModel] | None = Config
    for step in place[:-1]:
        if isinstance(step, str) and section is not None and step in section.model_fields:
            section = _deep_section(section.model_fields[step].annotation)
    allowed = list(section.model_fields) if section else []
    close = get_close_matches(str(place[-1]), allowed, n=1, cutoff=0.75)
    if section is Replication and not close:
        below = get_close_matches(str(place[-1]), Agent.model_fields, n=1, cutoff=0.75)
        close = [f"agent.{name}" for name in below]
    if close:
        return f"unknown setting; is {close[0]} meant?"
    return f"unknown setting; allowed: {', '.join(allowed)}"


def _deep_section(annotation: Any) -> type[BaseModel] | None:
    """The model somewhere inside an annotation, as in a list or mapping of sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_deep_section(argument) for argument in get_args(annotation))
    return next((section for section in inner if section is not None), None)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
