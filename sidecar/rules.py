"""The conflict rules that a configuration means, its custom script read and checked."""

from sidecar.config import Config
from sidecar.core.conflict import ConflictResolutionStrategy, Override, Rules
from sidecar.core.script import MAX_SCRIPT_BYTES, CustomScript, check
from sidecar.dialects.dialect import SCHEMA_TYPE
from sidecar.errors import Refused

# A schema has no other winner than the last one written.
_SCHEMA = Override(ConflictResolutionStrategy.LAST_WRITE_WINS, None, SCHEMA_TYPE)


def custom_script(config: Config) -> CustomScript | None:
    """The script of the configuration, None without one. Raises Refused("bad_script")."""
    path = config.replication.custom_script
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SCRIPT_BYTES + 1).decode()
    except OSError as error:
        why = f"replication.custom_script: {path} cannot be read: {error.strerror or error}"
        raise Refused("bad_script", why) from None
    except UnicodeDecodeError as error:
        why = f"replication.custom_script: {path} is not UTF-8 (byte {error.start})"
        raise Refused("bad_script", why) from None
    return check(text, path.name)


def rules_of(config: Config, custom: CustomScript | None) -> Rules:
    """How conflicts are decided on every node of the topology."""
    replication = config.replication
    has_schema = config.database is not None and config.database.dialect == "spicedb"
    return Rules.of(
        replication.conflict_resolution,
        replication.region_priorities,
        {str(node.id): str(node.region) for node in config.topology.nodes()},
        [
            *([_SCHEMA] if has_schema else []),
            *(
                Override(override.strategy, override.relation, override.resource_type)
                for override in replication.conflict_overrides
            ),
        ],
        custom.source if custom else "",
    )
