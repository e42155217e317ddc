"""`python -m hexgen_sglang`: the command line, for processes that know only their interpreter."""

from hexgen_sglang.cli.main import main

main()
