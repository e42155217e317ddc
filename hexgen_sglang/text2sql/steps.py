"""What the stages want done next, and what they are told: the protocol of the two drivers.

`stages.py` yields these, `agent.py` and `program.py` carry them out. Plain values.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from hexgen_sglang.text2sql.agreement import Agreement


@dataclass(frozen=True, slots=True)
class Ask:
    """Send these requests of one stage in parallel; the driver answers with `list[Reply]`.

    Attributes:
        tails: what follows the workflow's common prefix, one for each request.
        temperatures: one for each request.
        is_optional: the question can be answered without; requests that are still out at the
            deadline are given up.
        agreement: the replies hold SQL, which the driver runs as they come and notes there; it
            tells when the others are late. None: plain text.
        model: by which model; None: the driver's own.
    """

    stage: str
    tails: tuple[str, ...]
    temperatures: tuple[float, ...]
    max_new_tokens: int
    stop: tuple[str, ...]
    is_optional: bool = False
    agreement: Agreement | None = None
    model: str | None = None

    @property
    def may_be_cut(self) -> bool:
        """Whether requests that are still out may be given up at the deadline by now."""
        return self.is_optional or (self.agreement is not None and self.agreement.has_rows)


@dataclass(frozen=True, slots=True)
class AskTogether:
    """Several stages at the same time; the driver answers with a `list[Reply]` for each."""

    asks: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Execute:
    """Run these statements; the driver answers with `list[Execution]`."""

    sqls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Look for the database's own values in a text; the driver answers with `list[str]`."""

    stage: str
    text: str


@dataclass(frozen=True, slots=True)
class Extend:
    """Append to the workflow's common prefix; the driver answers with None."""

    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's text, or None and why there is none.

    Attributes:
        is_late: nobody waited for it: enough of its siblings agreed, or the deadline passed.
    """

    text: str | None
    error: str = ""
    is_late: bool = False

    @property
    def failed(self) -> bool:
        """Whether it was wanted and did not come."""
        return self.text is None and not self.is_late


Step = Ask | AskTogether | Execute | Retrieve | Extend
Steps = Generator[Step, Any, Any]
