"""`hexgen-sglang keys`: CURVE keys for links between machines, API keys for HTTP callers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hexgen_sglang.coordinator.api_keys import Role
from hexgen_sglang.core.errors import ConfigError


class Kind(StrEnum):
    """Which keys are made."""

    LINK = "link"
    API = "api"


def command(
    kind: Annotated[
        Kind, typer.Argument(help="`link`: CURVE keys (needs --out); `api`: one API key.")
    ] = Kind.LINK,
    out: Annotated[
        Path | None, typer.Option("--out", help="link: new folder for the keys.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="api: whose key this is.")] = None,
    role: Annotated[
        list[Role] | None,
        typer.Option(help="api: what it may do; repeatable (default: client)."),
    ] = None,
    file: Annotated[
        Path, typer.Option(help="api: key file to add it to; made when it is not there.")
    ] = Path("api-keys.toml"),
) -> None:
    """Make keys: CURVE keys for a link between machines, or one API key for a tenant."""
    if kind is Kind.API:
        _make_api_key(tenant, tuple(role or [Role.CLIENT]), file, out)
    else:
        _make_link_keys(out, tenant, role)


def _make_link_keys(out: Path | None, tenant: str | None, role: list[Role] | None) -> None:
    """A new key folder; never overwrites any."""
    if out is None:
        raise ConfigError("--out: needed for link keys: a new folder")
    if tenant is not None or role:
        raise ConfigError("--tenant, --role: only for `hexgen-sglang keys api`")
    from hexgen_sglang.transport.zmq_link import make_keys

    make_keys(out)
    print(f"keys written to {out} (mode 0700; secrets 0600)")
    print(f"coordinator: coordinator.secret coordinator.public allowed/   keys = {str(out)!r}")
    print(f"each worker: worker.secret worker.public coordinator.public   --hexgen-keys {out}")


def _make_api_key(
    tenant: str | None, roles: tuple[Role, ...], file: Path, out: Path | None
) -> None:
    """A new row in the key file; the key itself is printed, once, and kept nowhere."""
    if tenant is None:
        raise ConfigError("--tenant: needed for an api key")
    if out is not None:
        raise ConfigError("--out: only for link keys; an api key goes to --file")
    from hexgen_sglang.coordinator.api_keys import append_key, make_key

    key, row = make_key(tenant, roles)
    append_key(file, row)
    named = ", ".join(role.value for role in row.roles)
    typer.echo(f"key {row.id} of tenant {tenant} ({named}) added to {file} (api_keys)", err=True)
    typer.echo("the key is shown this once; send it as `Authorization: Bearer KEY`:", err=True)
    print(key)
