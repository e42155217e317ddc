"""What a dispatch policy assumes of a worker whose rates are not known yet."""

from __future__ import annotations

from collections.abc import Iterable


def known_or_mean(value: float | None, others: Iterable[float | None], default: float) -> float:
    """`value` when known, else the mean of the known `others`, else `default`.

    A new worker is thus taken to be average and gets its share, from which it is measured.
    Rates are tokens per second, above 0, or None.
    """
    if value is not None:
        return value
    known = [other for other in others if other is not None]
    return sum(known) / len(known) if known else default
