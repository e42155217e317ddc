"""Whom to run a throw-away database server as: the servers refuse to be root."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hexgen_sglang.core.errors import ConfigError


class ServerUser:
    """An unprivileged user where we are root, else ourselves.

    Args:
        names: of users, the preferred one first; looked for only where we are root.

    Raises:
        ConfigError: we are root, and there is none of these users.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._user = _first(names) if os.geteuid() == 0 else None

    def own(self, path: Path) -> None:
        """Give it a file or folder."""
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `subprocess` that start a program as this user."""
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


def _first(names: Sequence[str]) -> pwd.struct_passwd:
    for name in names:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ConfigError(f"database servers refuse root, and there is no user {' or '.join(names)}")
