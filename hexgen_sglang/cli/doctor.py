"""`hexgen-sglang doctor`."""


def command(json: bool = False) -> None:
    """Placeholder until the plugin lands."""
