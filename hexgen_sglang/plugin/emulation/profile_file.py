"""Reading an accelerator profile from its file, in the launching and the scheduler process."""

from __future__ import annotations

from pathlib import Path

from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ConfigError


def load_profile(path: Path) -> AcceleratorProfile:
    """The profile in the file.

    Raises:
        ConfigError: not readable, or not a profile; names file, field, value and range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return profile_from_toml(text, str(path))
