"""CURVE keys of the link and the folder they live in. No sockets here.

    coordinator.secret  coordinator.public   the coordinator's pair
    worker.secret       worker.public        the workers' pair
    allowed/*.public                         worker keys that the coordinator accepts

A worker needs `worker.*` and `coordinator.public`; the coordinator `coordinator.*` and
`allowed/`. Every file holds one key: 40 characters of Z85.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from hexgen_sglang.core.errors import ConfigError

ALLOWED_FOLDER = "allowed"
_Z85_KEY = re.compile(rb"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}\Z")


@dataclass(frozen=True, slots=True)
class CurvePair:
    """A key pair, each half 40 bytes of Z85. The secret half stays out of `repr`."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    """What a worker needs: its own pair, and whom it expects at the other end."""

    own: CurvePair
    coordinator_public: bytes


@dataclass(frozen=True, slots=True)
class CoordinatorKeys:
    """What the coordinator needs: its own pair, and the public keys of workers it accepts."""

    own: CurvePair
    allowed: frozenset[bytes]


def write_keys(folder: Path, coordinator: CurvePair, worker: CurvePair) -> None:
    """Write a new key folder (mode 0700, files 0600).

    Raises:
        ConfigError: a key file is there already (nothing is overwritten), or the folder
            cannot be written.
    """
    files = {
        folder / "coordinator.public": coordinator.public,
        folder / "coordinator.secret": coordinator.secret,
        folder / "worker.public": worker.public,
        folder / "worker.secret": worker.secret,
        folder / ALLOWED_FOLDER / "worker.public": worker.public,
    }
    present = [str(path) for path in files if path.exists()]
    if present:
        raise ConfigError(f"keys are never overwritten; already there: {', '.join(present)}")
    try:
        for parent in (folder, folder / ALLOWED_FOLDER):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            parent.chmod(0o700)
        for path, key in files.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(key + b"\n")
    except OSError as error:
        raise ConfigError(f"key folder {folder}: {error}") from error


def load_worker_keys(folder: Path | str) -> WorkerKeys:
    """Read what a worker needs from a key folder.

    Raises:
        ConfigError: a file is missing, is no key, or a secret is readable by others.
    """
    folder = Path(folder)
    return WorkerKeys(_pair(folder, "worker"), _read_key(folder / "coordinator.public"))


def load_coordinator_keys(folder: Path | str) -> CoordinatorKeys:
    """Read what the coordinator needs from a key folder.

    Raises:
        ConfigError: a file is missing, is no key, a secret is readable by others, or no
            worker key is allowed.
    """
    folder = Path(folder)
    allowed = frozenset(map(_read_key, sorted((folder / ALLOWED_FOLDER).glob("*.public"))))
    if not allowed:
        raise ConfigError(f"no worker keys: {folder / ALLOWED_FOLDER} holds no *.public file")
    return CoordinatorKeys(_pair(folder, "coordinator"), allowed)


def _pair(folder: Path, name: str) -> CurvePair:
    secret = folder / f"{name}.secret"
    return CurvePair(_read_key(folder / f"{name}.public"), _read_key(secret, private=True))


def _read_key(path: Path, *, private: bool = False) -> bytes:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"key file {path}: {error.strerror}") from error
    if private and mode & 0o077:
        raise ConfigError(f"key file {path}: mode {mode:04o} lets others read it; use 0600")
    if not _Z85_KEY.match(key):
        raise ConfigError(f"key file {path}: must hold one key of 40 Z85 characters")
    return key
