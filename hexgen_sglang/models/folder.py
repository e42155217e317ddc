"""Model folders in the user's cache: where they are, and how one is made exactly once.

Runs in the command line and the tests. A folder appears under its name only when it is
complete, so that processes which want the same model at the same time cannot see half of it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hexgen_sglang.core.errors import ConfigError

RECIPE_FILE = "hexgen-model.json"


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/hexgen-sglang/models`, with `~/.cache` when the variable is not set."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hexgen-sglang" / "models"


def make_once(folder: Path, recipe: str, write: Callable[[Path], None]) -> Path:
    """Return `folder`, made by `write` unless it is there already; safe to call concurrently.

    `recipe` is one line saying how the content came about; it is kept in the folder. `write`
    gets an empty folder beside the final one. Should `write` fail, nothing is left.

    Raises ConfigError when `folder` holds something else than a model made by this recipe, or
    cannot be written.
    """
    if _is_made(folder, recipe):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"model folder {folder}: cannot be written: {error}") from error
    try:
        write(draft)
        (draft / RECIPE_FILE).write_text(json.dumps({"recipe": recipe}) + "\n")
        draft.chmod(0o755)
        _publish(draft, folder, recipe)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _publish(draft: Path, folder: Path, recipe: str) -> None:
    """Give `draft` its final name, unless another process was first with the same model."""
    try:
        draft.rename(folder)
    except OSError:
        if not _is_made(folder, recipe):
            raise


def _is_made(folder: Path, recipe: str) -> bool:
    """Whether `folder` is complete; an empty or absent folder is not, another one is an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / RECIPE_FILE).read_text())["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        found = "something that is no model of ours"
    if found != recipe:
        raise ConfigError(
            f"model folder {folder}: holds {found!r}; allowed: absent, empty, or {recipe!r}"
        )
    return True
