"""What workers are taken to cost before they have been measured: accelerator profiles by name.

Read once, when a coordinator or a simulation of one is built.
"""

from __future__ import annotations

from pathlib import Path

from hexgen_sglang.core.accelerator import at_time_scale
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.policies.estimators import profile_costs


def stated_costs(folder: Path, time_scale: float = 1.0) -> dict[str, StepCosts]:
    """Step costs by hardware name, from every profile (`*.toml`) of the folder.

    `time_scale`: the profiles' seconds in one of ours, above 0.

    Raises:
        ConfigError: the folder has no profile, one cannot be read or is not valid, or two have
            one name.
    """
    found: dict[str, StepCosts] = {}
    try:
        texts = {path: path.read_text("utf-8") for path in sorted(folder.glob("*.toml"))}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"accelerators={str(folder)!r}: {error}") from error
    for path, text in texts.items():
        profile = profile_from_toml(text, str(path))
        if profile.name in found:
            raise ConfigError(f"{path}: name={profile.name!r}: another profile has it, too")
        found[profile.name] = profile_costs(at_time_scale(profile, time_scale))
    if not found:
        raise ConfigError(
            f"accelerators={str(folder)!r}: must be a folder with accelerator profiles (*.toml)"
        )
    return found
