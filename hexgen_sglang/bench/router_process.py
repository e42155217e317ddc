"""sglang-router's own program, started without what it does not need here.

Its Python launcher also imports a debugging balancer, and with that all of SGLang: 15 s of CPU
at every start, in which a comparison on two cores waits. Same flags, same Rust router.
Run as `python -m hexgen_sglang.bench.router_process`.
"""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM; `arguments` are those of `sglang_router.launch_router`."""
    from sglang_router.router import Router
    from sglang_router.router_args import RouterArgs

    parser = argparse.ArgumentParser(prog="sglang-router")
    RouterArgs.add_cli_args(parser, use_router_prefix=False)
    settings = RouterArgs.from_cli_args(parser.parse_args(arguments), use_router_prefix=False)
    Router.from_args(settings).start()


if __name__ == "__main__":
    main(sys.argv[1:])
