"""The agent's stages, written once: what to ask a model and what to run, never how.

`Agent.run` is a generator. It yields `Ask` and `Execute` and is sent their results, so that a
driver decides how requests travel (`program.py`: an SGLang frontend program). Pure: no clock
but the given one, no network, no database.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql import extract, prompts
from hexgen_sglang.text2sql.answer import Answer, AnswerOutcome, Candidate, Question
from hexgen_sglang.text2sql.examples import Example
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.schema import Schema, Table
from hexgen_sglang.text2sql.selection import choose, groups_of

LINK_SCHEMA = "link_schema"
GENERATE_CANDIDATE = "generate_candidate"
REVISE = "revise"
GENERATE_UNIT_TEST = "generate_unit_test"
EVALUATE = "evaluate"
STAGES = (LINK_SCHEMA, GENERATE_CANDIDATE, REVISE, GENERATE_UNIT_TEST, EVALUATE)

# Prompting strategies; candidate i takes the i-th, and from the second time on it is sampled.
STRATEGIES = ("direct", "linked", "columns")
_SQL_STOPS = (";", "\n\n", "\nQ:")
_MAX_GROUPS = 3
_MAX_ERROR_CHARS = 160
_MAX_PREVIEW_CHARS = 160
_MAX_PREVIEW_ROWS = 3
_EMPTY_RESULT = "the result is empty"


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How much the agent does for one question.

    Attributes:
        num_candidates: parallel attempts, 1 to 32.
        max_rounds: rounds of self-correction, 0 to 10.
        num_checks: unit tests for the result, 0 to 8; 0 leaves the choice to agreement.
        max_sql_tokens: output limit for SQL, 8 to 4,096.
        max_check_tokens: output limit for each unit test, 4 to 512.
        max_link_tokens: output limit for the list of tables, 4 to 512.
        temperature: of repeated strategies and of revisions, 0 to 2; first attempts are greedy.

    Raises:
        ConfigError: a setting is out of range.
    """

    num_candidates: int = 3
    max_rounds: int = 2
    num_checks: int = 2
    max_sql_tokens: int = 48
    max_check_tokens: int = 20
    max_link_tokens: int = 16
    temperature: float = 0.6

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_candidates", 1, 32),
            ("max_rounds", 0, 10),
            ("num_checks", 0, 8),
            ("max_sql_tokens", 8, 4096),
            ("max_check_tokens", 4, 512),
            ("max_link_tokens", 4, 512),
            ("temperature", 0, 2),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"AgentSettings.{name}={value}: must be {low} to {high}")


@dataclass(frozen=True, slots=True)
class Ask:
    """Send these requests of one stage in parallel; the driver answers with `list[Reply]`.

    Attributes:
        tails: what follows the workflow's common prefix, one for each request.
        temperatures: one for each request.
    """

    stage: str
    tails: tuple[str, ...]
    temperatures: tuple[float, ...]
    max_new_tokens: int
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Execute:
    """Run these statements; the driver answers with `list[Execution]`."""

    sqls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's text, or None and why there is none."""

    text: str | None
    error: str = ""


Steps = Generator[Ask | Execute, Any, Any]


class Agent:
    """One question's way through the stages.

    Args:
        question: what is asked.
        schema: of the database.
        examples: shown behind the schema.
        settings: how much to do.
        remaining_s: seconds left until the deadline, None without one; optional stages are
            skipped once it is below zero.
    """

    def __init__(
        self,
        question: Question,
        schema: Schema,
        examples: Sequence[Example],
        settings: AgentSettings,
        remaining_s: Callable[[], float | None],
    ) -> None:
        self.question = question
        self.prefix = prompts.prefix(schema, examples, question.text)
        self._asked = prompts.one_line(question.text, prompts.MAX_QUESTION_CHARS)
        self._schema = schema
        self._settings = settings
        self._remaining_s = remaining_s
        self._linked: tuple[str, ...] = ()
        self._checks: tuple[str, ...] = ()
        self._candidates: list[Candidate] = []
        self._skipped: list[str] = []
        self._failures: list[str] = []
        self._num_replies = 0

    def run(self) -> Generator[Ask | Execute, Any, Answer]:
        """All stages; returns the answer, without times and costs, which the driver knows."""
        yield from self._link_schema()
        yield from self._generate_candidates()
        for _ in range(self._settings.max_rounds):
            if not self._to_revise() or self._has_to_skip(REVISE):
                break
            if not (yield from self._revise()):
                break
        yield from self._test()
        return self._answer()

    def _link_schema(self) -> Steps:
        replies = yield from self._ask(
            LINK_SCHEMA,
            [prompts.tail(LINK_SCHEMA)],
            max_new_tokens=self._settings.max_link_tokens,
            stop=("\n",),
        )
        named = extract.tables_from(replies[0].text or "", self._schema)
        mentioned = extract.tables_from(_singulars(self._asked), self._schema)
        self._linked = tuple(dict.fromkeys([*mentioned, *named]))

    def _generate_candidates(self) -> Steps:
        count = self._settings.num_candidates
        strategies = [STRATEGIES[position % len(STRATEGIES)] for position in range(count)]
        tails = [
            prompts.tail(
                f"candidate_{strategy}",
                linked=self._linked,
                columns=self._table_lines(self._linked),
                question=self._asked,
            )
            for strategy in strategies
        ]
        replies = yield from self._ask(
            GENERATE_CANDIDATE,
            tails,
            max_new_tokens=self._settings.max_sql_tokens,
            stop=_SQL_STOPS,
            num_greedy=len(STRATEGIES),
        )
        sqls = [extract.sql_from(reply.text or "") for reply in replies]
        self._num_replies = sum(reply.text is not None for reply in replies)
        executions = yield from self._execute([sql for sql in sqls if sql is not None])
        self._candidates = [
            Candidate(strategy, executions.get(sql) if sql is not None else None)
            for strategy, sql in zip(strategies, sqls, strict=True)
        ]

    def _to_revise(self) -> list[Execution]:
        """Different executions that gave no rows, in order."""
        found = {
            candidate.execution.sql: candidate.execution
            for candidate in self._candidates
            if candidate.execution is not None and not candidate.has_rows
        }
        return list(found.values())

    def _revise(self) -> Generator[Ask | Execute, Any, bool]:
        """One round; False when it changed nothing, so that another would not either."""
        wrong = self._to_revise()
        tails = [
            prompts.tail(
                REVISE,
                sql=one.sql,
                error=_error_line(one),
                columns=self._table_lines(extract.tables_from(one.sql, self._schema)),
            )
            for one in wrong
        ]
        replies = yield from self._ask(
            REVISE, tails, max_new_tokens=self._settings.max_sql_tokens, stop=_SQL_STOPS
        )
        revised = {
            one.sql: extract.sql_from(reply.text or "")
            for one, reply in zip(wrong, replies, strict=True)
        }
        executions = yield from self._execute(
            [new for old, new in revised.items() if new is not None and new != old]
        )
        self._candidates = [_revised(one, revised, executions) for one in self._candidates]
        return bool(executions)

    def _test(self) -> Steps:
        """Unit tests, where results differ so that a choice has to be made."""
        groups = [group for group in groups_of(self._candidates) if group.has_rows][:_MAX_GROUPS]
        if len(groups) < 2 or self._settings.num_checks == 0:
            return
        if self._has_to_skip(GENERATE_UNIT_TEST):
            return
        replies = yield from self._ask(
            GENERATE_UNIT_TEST,
            [prompts.tail(GENERATE_UNIT_TEST)] * self._settings.num_checks,
            max_new_tokens=self._settings.max_check_tokens,
            stop=("\n",),
            num_greedy=1,
        )
        written = "\n".join(reply.text or "" for reply in replies)
        self._checks = extract.checks_from(written, self._settings.num_checks)
        if not self._checks or self._has_to_skip(EVALUATE):
            return
        yield from self._evaluate([group.members[0] for group in groups])

    def _evaluate(self, speakers: Sequence[int]) -> Steps:
        """Ask for every speaker and check whether the result passes."""
        pairs = [(speaker, check) for speaker in speakers for check in self._checks]
        tails = [
            prompts.tail(EVALUATE, check=check, **_preview(self._candidates[speaker]))
            for speaker, check in pairs
        ]
        replies = yield from self._ask(EVALUATE, tails, max_new_tokens=3, stop=("\n",))
        for (speaker, _), reply in zip(pairs, replies, strict=True):
            if extract.verdict_from(reply.text or ""):
                candidate = self._candidates[speaker]
                passed = candidate.checks_passed + 1
                self._candidates[speaker] = replace(candidate, checks_passed=passed)

    def _ask(
        self,
        stage: str,
        tails: Sequence[str],
        *,
        max_new_tokens: int,
        stop: tuple[str, ...],
        num_greedy: int | None = None,
    ) -> Generator[Ask | Execute, Any, list[Reply]]:
        """One stage's requests; failed ones are noted. `num_greedy` None: as the stage needs."""
        if num_greedy is None:
            num_greedy = 0 if stage == REVISE else len(tails)
        temperatures = [
            0.0 if position < num_greedy else self._settings.temperature
            for position in range(len(tails))
        ]
        replies: list[Reply] = yield Ask(
            stage, tuple(tails), tuple(temperatures), max_new_tokens, stop
        )
        self._failures += [f"{stage}: {reply.error}" for reply in replies if reply.text is None]
        return replies

    def _execute(self, sqls: Sequence[str]) -> Generator[Ask | Execute, Any, dict[str, Execution]]:
        """Every different statement once; what did not run is noted."""
        different = tuple(dict.fromkeys(sqls))
        if not different:
            return {}
        executions: list[Execution] = yield Execute(different)
        self._failures += [
            f"{one.outcome}: {one.message}: {prompts.one_line(one.sql, _MAX_PREVIEW_CHARS)}"
            for one in executions
            if not one.ran
        ]
        return {one.sql: one for one in executions}

    def _has_to_skip(self, stage: str) -> bool:
        """Whether an optional stage is left out because the deadline has passed."""
        remaining_s = self._remaining_s()
        if remaining_s is None or remaining_s > 0:
            return False
        self._skipped.append(stage)
        return True

    def _table_lines(self, names: Sequence[str]) -> list[str]:
        tables: list[Table | None] = [self._schema.table(name) for name in names]
        return [prompts.table_line(table) for table in tables if table is not None]

    def _answer(self) -> Answer:
        chosen = choose(self._candidates, len(self._checks))
        answer = Answer(
            question=self.question,
            outcome=AnswerOutcome.NO_SQL,
            sql=None,
            linked_tables=self._linked,
            checks=self._checks,
            candidates=tuple(self._candidates),
            skipped=tuple(self._skipped),
            failures=tuple(self._failures),
        )
        if chosen is not None:
            execution = self._candidates[chosen].execution
            assert execution is not None
            found = execution.outcome is SqlOutcome.ROWS
            return replace(
                answer,
                outcome=AnswerOutcome.ROWS if found else AnswerOutcome.EMPTY,
                sql=execution.sql,
                columns=execution.columns,
                rows=execution.rows,
                truncated=execution.truncated,
                message="" if found else _EMPTY_RESULT,
            )
        if self._num_replies == 0:
            message = self._failures[-1] if self._failures else "no request was answered"
            return replace(answer, outcome=AnswerOutcome.MODEL_FAILED, message=message)
        wrong = self._to_revise()
        if wrong:
            last = wrong[0]
            return replace(
                answer,
                outcome=AnswerOutcome.NO_VALID_SQL,
                sql=last.sql,
                message=_error_line(last),
            )
        return replace(answer, message="the model wrote no SQL")


def _revised(
    candidate: Candidate, revised: dict[str, str | None], executions: dict[str, Execution]
) -> Candidate:
    """The candidate with its new SQL, unless that is worse than an empty result."""
    old = candidate.execution
    if old is None or old.sql not in revised:
        return candidate
    new = executions.get(revised[old.sql] or "")
    if new is None or (old.ran and not new.ran):
        return replace(candidate, num_revisions=candidate.num_revisions + 1)
    return replace(candidate, execution=new, num_revisions=candidate.num_revisions + 1)


def _error_line(execution: Execution) -> str:
    """The database's own words, or that there were no rows."""
    return prompts.one_line(execution.message, _MAX_ERROR_CHARS) or _EMPTY_RESULT


def _preview(candidate: Candidate) -> dict[str, str]:
    """A candidate's SQL and the beginning of its result, for the evaluation prompt."""
    execution = candidate.execution
    assert execution is not None
    shown = [
        ", ".join("NULL" if cell is None else str(cell) for cell in row)
        for row in execution.rows[:_MAX_PREVIEW_ROWS]
    ]
    dots = [f"... ({len(execution.rows)} rows)"] if len(execution.rows) > len(shown) else []
    result = f"{', '.join(execution.columns)} = {'; '.join([*shown, *dots])}"
    return {"sql": execution.sql, "result": prompts.one_line(result, _MAX_PREVIEW_CHARS)}


def _singulars(text: str) -> str:
    """The text with each word once as it is and once without a plural s."""
    return " ".join(f"{word} {word[:-1]}" if word.endswith("s") else word for word in _words(text))


def _words(text: str) -> list[str]:
    return "".join(char if char.isalnum() or char == "_" else " " for char in text).split()
