"""Free TCP ports for the processes that we start, and a look at what answers on them.

Runs in the process that owns the children.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import tempfile
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

from hexgen_sglang.core.errors import ProcessError

# Below the ports that Linux hands to outgoing connections by default (32768 and up): a port
# from there can be taken by any connection between our look and the child's bind.
FIRST_PORT, LAST_PORT = 20_000, 31_999
_ATTEMPTS = 500

# A byte of this file for each port, locked by the process that a port was given to until it ends:
# a child may bind its port half a minute later.
_CLAIMS = Path(tempfile.gettempdir()) / f"hexgen-ports-{os.getuid()}"

_handed_out: set[int] = set()
# A proxy of the environment must not see requests to our own children.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A TCP port, free on all interfaces, that no process of this user was given before.

    Those of processes that have ended count as free again.

    Raises:
        ProcessError: none was free, or the file of claims cannot be opened.
    """
    for _ in range(_ATTEMPTS):
        port = random.randint(FIRST_PORT, LAST_PORT)
        if port not in _handed_out and _is_free(port) and _claim(port):
            _handed_out.add(port)
            return port
    raise ProcessError(f"no free TCP port found between {FIRST_PORT} and {LAST_PORT}")


@cache
def _claims() -> int:
    """Descriptor of the file of claims; stays open, since closing it gives all of them up.

    Raises:
        ProcessError: it cannot be opened.
    """
    try:
        return os.open(_CLAIMS, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ProcessError(f"file of port claims: {error}") from error


def _claim(port: int) -> bool:
    """Claim a port for this process; False when another one has it."""
    try:
        fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError:
            return False
    return True


def fetch_json(url: str, timeout_s: float = 5.0) -> Any:
    """GET a JSON document from a child of ours; None when it does not answer 200 with JSON."""
    try:
        with _direct.open(url, timeout=timeout_s) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def answers(url: str, timeout_s: float = 5.0) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with _direct.open(url, timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
