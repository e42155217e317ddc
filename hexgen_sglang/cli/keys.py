"""`hexgen-sglang keys`: makes the key folder of a link between machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Option("--out", help="New folder for the keys.")],
) -> None:
    """Make CURVE keys for a link between machines; never overwrites any."""
    from hexgen_sglang.transport.zmq_link import make_keys

    make_keys(out)
    print(f"keys written to {out} (mode 0700; secrets 0600)")
    print(f"coordinator: coordinator.secret coordinator.public allowed/   keys = {str(out)!r}")
    print(f"each worker: worker.secret worker.public coordinator.public   --hexgen-keys {out}")
