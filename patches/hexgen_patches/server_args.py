"""Hooks of `ServerArgs`: our flags. In every process that parses SGLang's command line."""

from __future__ import annotations

import argparse
from typing import Any

from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.plugin import entry, flags


def add_flags(result: None, parser: argparse.ArgumentParser) -> None:
    """AFTER add_cli_args: add our flags and our schedule policy's name."""
    flags.add_flags(parser)


def prepare_launch(cls: type[Any], args: argparse.Namespace) -> None:
    """BEFORE from_cli_args: apply what our flags ask for, or end the launch with one line."""
    try:
        entry.prepare_launch(args)
    except HexgenError as error:
        raise SystemExit(f"hexgen-sglang: {error}") from error
