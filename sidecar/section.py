"""What every section of the settings is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen; an unknown setting is an error; values, which may be secret, stay unsaid."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
