"""Import what servers and commands import, in the environment that was just made.

The last step of `install.sh`: checks the installation, and leaves byte code behind so that the
first server does not spend a minute compiling. Prints what it did; a failure is a traceback.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import subprocess
import sys
import time
import warnings
from pathlib import Path

STEPS = {
    "torch": ["torch", "torchvision", "safetensors.torch", "numpy"],
    "transformers": ["transformers", "tokenizers", "gguf"],
    "SGLang's server": [
        "sglang",
        "sglang.launch_server",
        "sglang.srt.entrypoints.http_server",
        "sglang.srt.managers.scheduler",
        "sglang.srt.managers.detokenizer_manager",
        "sglang.srt.model_executor.model_runner",
    ],
    "SGLang's models": ["sglang.srt.models.registry", "sglang.srt.models.llama"],
    "hexgen-sglang": [
        "aiohttp",
        "jinja2",
        "msgspec",
        "prometheus_client",
        "rich",
        "sqlglot",
        "starlette",
        "typer",
        "uvicorn",
        "uvloop",
        "zmq",
        "hexgen_sglang",
        "hexgen_patches",
        "hexgen_kernels",
    ],
}


def main() -> None:
    """Import every step's modules, then run the command line once."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # SGLang reports each model it cannot import without a GPU
    for step, modules in STEPS.items():
        began = time.monotonic()
        for module in modules:
            importlib.import_module(module)
        print(f"setup:     {step}: {time.monotonic() - began:.0f} s", flush=True)
    import torch

    print(
        f"setup:     SGLang {importlib.metadata.version('sglang')}, torch {torch.__version__}, "
        f"GPU: {'yes' if torch.cuda.is_available() else 'no'}"
    )
    command = Path(sys.executable).parent / "hexgen-sglang"
    subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
