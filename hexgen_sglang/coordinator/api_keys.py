"""API keys of the HTTP surface: how they are made, kept in a file, and recognised.

    [[keys]]
    id = "9f86d081884c7d65"     shown in logs; not secret
    tenant = "acme"             whose requests and workflows these are
    roles = ["client"]          client, operator, or both
    salt = "..."                16 bytes, hex
    hash = "..."                32 bytes, hex: keyed BLAKE2b of the secret
    created = "2026-01-31"

The file holds no key, only hashes. A key carries 256 random bits, so nobody can go through
candidates, and a slow hash (scrypt) would protect nothing: it would only let strangers spend
the event loop's time, tens of milliseconds for each wrong key. A fast one with a salt of its
own for each row is right here. Used by the coordinator's process and by `hexgen-sglang keys`.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.strict import convert

log = logging.getLogger(__name__)

_PREFIX = "hexgen"
_TOKEN = re.compile(rf"{_PREFIX}_([0-9a-f]{{16}})_([A-Za-z0-9_-]{{43}})")
_SECRET_BYTES = 32
_SALT_BYTES = 16
_PURPOSE = b"hexgen api key"
_MAX_FILE_BYTES = 16 * 1024 * 1024
_MAX_KEYS = 65_536

# No "/": it stands between tenant and workflow id where workflows of all tenants meet.
TenantName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:@+=-]+\Z")]


class Role(StrEnum):
    """What a key may do."""

    CLIENT = "client"  # generate; see and change the workflows of its tenant
    OPERATOR = "operator"  # workers, metrics, and the workflows of every tenant


class ApiKey(Struct, frozen=True, forbid_unknown_fields=True):
    """One row of a key file; see the module's docstring."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    tenant: TenantName
    roles: Annotated[tuple[Role, ...], Meta(min_length=1, max_length=2)]
    salt: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    hash: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    created: Annotated[str, Meta(max_length=32)] = ""


class _KeyFile(Struct, frozen=True, forbid_unknown_fields=True):
    keys: Annotated[tuple[ApiKey, ...], Meta(min_length=1, max_length=_MAX_KEYS)]


# Stands in for unknown ids, so that they take as long to refuse as wrong secrets.
_NOBODY = ApiKey("0" * 16, "nobody", (Role.CLIENT,), "0" * 2 * _SALT_BYTES, "0" * 64)


def make_key(tenant: str, roles: tuple[Role, ...]) -> tuple[str, ApiKey]:
    """A new key: the text its owner sends, and the row to keep.

    Raises:
        ConfigError: the tenant's name is not 1-64 characters of [A-Za-z0-9._:@+=-].
    """
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(_SECRET_BYTES)
    salt = secrets.token_hex(_SALT_BYTES)
    row = {
        "id": key_id,
        "tenant": tenant,
        "roles": [role.value for role in dict.fromkeys(roles)],
        "salt": salt,
        "hash": _hash(secret, salt),
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    return f"{_PREFIX}_{key_id}_{secret}", convert(row, ApiKey, "api key")


def append_key(path: Path, row: ApiKey) -> None:
    """Add a row to a key file, which is made (mode 0600) when it is not there.

    Raises:
        ConfigError: the file cannot be written, others may write it, or it is no key file.
    """
    if path.exists():
        load_keys(path)
    roles = ", ".join(f'"{role.value}"' for role in row.roles)
    text = (
        f'[[keys]]\nid = "{row.id}"\ntenant = "{row.tenant}"\nroles = [{roles}]\n'
        f'salt = "{row.salt}"\nhash = "{row.hash}"\ncreated = "{row.created}"\n\n'
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"api key file {path}: {error.strerror}") from error


def load_keys(path: Path) -> dict[str, ApiKey]:
    """The rows of a key file, by id.

    Raises:
        ConfigError: not readable, writable by others, too long, not TOML, a field that is
            unknown or out of range, an id that is there twice, or no key at all.
    """
    try:
        status = path.stat()
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(status.st_mode)
            raise ConfigError(f"api key file {path}: mode {mode:04o} lets others write; use 0600")
        if status.st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"api key file {path}: must be at most {_MAX_FILE_BYTES} bytes")
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"api key file {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"api key file {path}: {error}") from error
    rows = convert(raw, _KeyFile, f"api key file {path}").keys
    by_id = {row.id: row for row in rows}
    if len(by_id) < len(rows):
        raise ConfigError(f"api key file {path}: every id must be there once")
    return by_id


class KeyRing:
    """The keys of one file, looked up for each request and read again when the file changes.

    Args:
        path: the key file.

    Attributes:
        is_stale: the file has changed and what it holds now cannot be used; the keys read
            before stay in force, those taken out of the file included.

    Raises:
        ConfigError: see `load_keys`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _signature(path)
        self._keys = load_keys(path)
        self.is_stale = False

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, token: str) -> ApiKey | None:
        """The row of this key, or None. Takes the same time for every wrong key of right form."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        row = self._keys.get(match[1])
        known = row or _NOBODY
        is_right = hmac.compare_digest(_hash(match[2], known.salt), known.hash)
        return row if is_right else None

    def reload_if_changed(self, *, force: bool = False) -> None:
        """Read the file again if it differs from what was last tried, or if `force`.

        Blocking (one `stat`; a read when changed): call it off the event loop.
        """
        signature = _signature(self._path)
        if signature == self._seen and not force:
            return
        self._seen = signature
        try:
            self._keys = load_keys(self._path)
        except ConfigError as error:
            self.is_stale = True
            log.error("the %d api keys read before stay in force: %s", len(self._keys), error)
            return
        self.is_stale = False
        log.info("api keys read again: %d", len(self._keys))


def _signature(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None when it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _hash(secret: str, salt: str) -> str:
    return hashlib.blake2b(
        secret.encode(), key=bytes.fromhex(salt), person=_PURPOSE, digest_size=32
    ).hexdigest()
