"""What a running demo shows: a live board on a terminal, plain lines anywhere else.

Runs in the command line's process; draws what it is given and asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

OPEN_OUTCOMES = ("queued", "running")
MAX_QUESTION = 52


@dataclass
class Flow:
    """One question on its way.

    Attributes:
        number: from 1.
        asked_s: seconds since the run's first question.
        workflow_id: None until it is known.
        record: the newest answer to GET /workflows/{id}; None before the first request.
        result: words on what came of it; None while it lasts.
        has_rows: whether those words are good news.
        ended_s: when it had its answer, seconds since the first question; None before.
    """

    number: int
    question: str
    deadline_s: float | None
    asked_s: float
    workflow_id: str | None = None
    record: Mapping[str, Any] | None = None
    result: str | None = None
    has_rows: bool = False
    ended_s: float | None = None

    def requests(self) -> Sequence[Mapping[str, Any]]:
        """Its LLM requests so far."""
        return self.record["requests"] if self.record else ()

    def now_doing(self) -> str:
        """The stages of its open requests, with how many run and how many wait."""
        counts: dict[str, dict[str, int]] = {}
        for row in self.requests():
            if row["outcome"] in OPEN_OUTCOMES:
                stage = counts.setdefault(
                    row["stage"] or "unnamed", dict.fromkeys(OPEN_OUTCOMES, 0)
                )
                stage[row["outcome"]] += 1
        return ", ".join(
            f"{stage} " + " ".join(f"{count} {word}" for word, count in by_word.items() if count)
            for stage, by_word in counts.items()
        )

    def num_done(self) -> int:
        """Requests that have ended."""
        return sum(row["outcome"] not in OPEN_OUTCOMES for row in self.requests())


class View(Protocol):
    """Where progress goes."""

    def starting(self, name: str, elapsed_s: float, line: str) -> None:
        """A process is awaited: how long already, and the last line of its log."""
        ...

    def say(self, line: str) -> None:
        """One line that stays."""
        ...

    def update(
        self, workers: Sequence[Mapping[str, Any]], flows: Sequence[Flow], now_s: float
    ) -> None:
        """The newest state; `now_s` counts from the first question."""
        ...

    def close(self) -> None:
        """No more updates; what was shown last stays."""
        ...


def make_view(console: Console) -> View:
    """A board where the console is a terminal, lines where it is not."""
    return Board(console) if console.is_terminal else Lines(console)


class Lines:
    """Plain lines, one for each change worth knowing."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[object, str] = {}

    def starting(self, name: str, elapsed_s: float, line: str) -> None:
        step = str(int(elapsed_s) // 10)
        if self._is_news(name, step):
            self.say(f"  {name}: starting, {elapsed_s:.0f} s  {line[:80]}")

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update(
        self, workers: Sequence[Mapping[str, Any]], flows: Sequence[Flow], now_s: float
    ) -> None:
        for flow in flows:
            state = flow.result or ", ".join(
                sorted({row["stage"] for row in flow.requests() if row["outcome"] in OPEN_OUTCOMES})
            )
            if state and self._is_news(flow.number, state):
                self.say(f"[{now_s:6.1f} s] {flow.number:2}. {_short(flow.question)}: {state}")

    def close(self) -> None:
        self._told.clear()

    def _is_news(self, key: object, state: str) -> bool:
        news = self._told.get(key) != state
        self._told[key] = state
        return news


class Board:
    """Two tables that are redrawn in place: the workers, and the workflows with their stages."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._starting: dict[str, str] = {}

    def starting(self, name: str, elapsed_s: float, line: str) -> None:
        self._starting[name] = f"{elapsed_s:4.0f} s  {line}"
        table = Table.grid(padding=(0, 2))
        for awaited, state in self._starting.items():
            table.add_row(
                Text(awaited, "bold"), Text(state, "dim", no_wrap=True, overflow="ellipsis")
            )
        self._show(table)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def update(
        self, workers: Sequence[Mapping[str, Any]], flows: Sequence[Flow], now_s: float
    ) -> None:
        self._starting.clear()
        self._show(Group(_worker_table(workers), Text(""), _flow_table(flows, now_s)))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, what: RenderableType) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(what, refresh=True)


def _worker_table(workers: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("worker", "state"):
        table.add_column(heading)
    for heading in ("in flight", "running", "waiting", "KV tokens"):
        table.add_column(heading, justify="right")
    for row in workers:
        load = row["load"] or {}
        told = [load.get(name) for name in ("num_running", "num_waiting", "num_kv_tokens_used")]
        table.add_row(
            Text(row["worker_id"], "bold"),
            Text(row["state"], "green" if row["state"] == "ready" else "yellow"),
            str(row["num_in_flight"]),
            *("-" if count is None else f"{count:,}" for count in told),
        )
    return table


def _flow_table(flows: Sequence[Flow], now_s: float) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), expand=True)
    table.add_column("", justify="right")
    table.add_column("question", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("requests", justify="right")
    table.add_column("deadline", justify="right", no_wrap=True)
    table.add_column("now", no_wrap=True, overflow="ellipsis", ratio=3)
    for flow in flows:
        table.add_row(
            str(flow.number),
            flow.question,
            str(flow.num_done()),
            _deadline_text(flow, now_s),
            Text(flow.result, "green" if flow.has_rows else "yellow")
            if flow.result
            else Text(flow.now_doing() or "...", "cyan"),
        )
    return table


def _deadline_text(flow: Flow, now_s: float) -> Text:
    """What is left of the deadline, or how the workflow stood to it at its end."""
    if flow.deadline_s is None:
        return Text("none", "dim")
    left_s = flow.asked_s + flow.deadline_s - (now_s if flow.ended_s is None else flow.ended_s)
    if left_s < 0:
        return Text(f"{-left_s:.0f} s late", "red")
    if flow.ended_s is not None:
        return Text(f"met, {left_s:.0f} s left", "green")
    return Text(f"{left_s:.0f} s left")


def _short(question: str) -> str:
    return question if len(question) <= MAX_QUESTION else question[: MAX_QUESTION - 3] + "..."
