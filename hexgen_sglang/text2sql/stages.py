"""The agent's stages, written once: what to ask a model and what to run, never how.

`QuestionStages.run` is a generator. It yields steps and is sent their results, so that a driver
decides how requests travel (`agent.py`: any OpenAI-compatible server; `program.py`: an SGLang
frontend program). Pure: no clock but the given one, no network, no database.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

from hexgen_sglang.text2sql import extract, prompts, qualification, wording
from hexgen_sglang.text2sql.agreement import Agreement
from hexgen_sglang.text2sql.answer import Answer, Candidate, Question
from hexgen_sglang.text2sql.budget import (
    EVALUATE,
    GENERATE_CANDIDATE,
    GENERATE_UNIT_TEST,
    LINK_SCHEMA,
    REVISE,
    StageTimes,
)
from hexgen_sglang.text2sql.conclusion import conclude, revised, without_rows
from hexgen_sglang.text2sql.examples import Example
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.question_budget import QuestionBudget
from hexgen_sglang.text2sql.schema import Schema, Table
from hexgen_sglang.text2sql.selection import groups_of
from hexgen_sglang.text2sql.settings import AgentSettings
from hexgen_sglang.text2sql.steps import (
    Ask,
    AskTogether,
    Execute,
    Extend,
    Reply,
    Retrieve,
    Step,
    Steps,
)

WORKFLOW_TYPE = "text2sql"
EXTRACT_KEYWORDS = "extract_keywords"
RETRIEVE_VALUES = "retrieve_values"
STAGES = (
    RETRIEVE_VALUES,
    LINK_SCHEMA,
    EXTRACT_KEYWORDS,
    GENERATE_CANDIDATE,
    REVISE,
    GENERATE_UNIT_TEST,
    EVALUATE,
)

# Prompting strategies; candidate i takes the i-th, in turn.
STRATEGIES = ("direct", "linked", "columns")
_SQL_STOPS = (";", "\n\n", "\nQ:")
_MAX_GROUPS = 3
_MAX_KEYWORDS = 6
_MAX_KEYWORD_VALUES = 3


class QuestionStages:
    """One question's way through the stages.

    Args:
        question: what is asked.
        schema: of the database.
        examples: shown behind the schema.
        settings: how much to do, at most.
        remaining_s: seconds left until the deadline, None without one.
        times: what stages took so far; the driver notes them there.
    """

    def __init__(
        self,
        question: Question,
        schema: Schema,
        examples: Sequence[Example],
        settings: AgentSettings,
        remaining_s: Callable[[], float | None],
        times: StageTimes | None = None,
    ) -> None:
        self.question = question
        self._asked = prompts.one_line(question.text, prompts.MAX_QUESTION_CHARS)
        self._schema = schema
        self._examples = examples
        self._settings = settings
        self._times = times or StageTimes()
        self._budget = QuestionBudget(settings, remaining_s, self._times)
        self._values: list[str] = []
        self._linked: tuple[str, ...] = ()
        self._checks: tuple[str, ...] = ()
        self._candidates: list[Candidate] = []
        self._is_settled = False
        self._failures: list[str] = []
        self._num_replies = 0

    def run(self) -> Generator[Step, Any, Answer]:
        """All stages; returns the answer, without times and costs, which the driver knows."""
        self._values = yield Retrieve(RETRIEVE_VALUES, self._asked)
        yield Extend(prompts.prefix(self._schema, self._examples, self._asked, self._values))
        yield from self._link()
        yield from self._generate_candidates()
        if not self._is_settled:
            yield from self._correct()
            yield from self._test()
        answer = conclude(
            self.question,
            self._candidates,
            self._checks,
            self._num_replies,
            tuple(self._failures),
        )
        return replace(
            answer,
            linked_tables=self._linked,
            skipped=tuple(self._budget.skipped),
            dropped=self._budget.dropped,
        )

    def _link(self) -> Steps:
        """Tables and keywords at the same time, then the values that the keywords lead to."""
        mentioned = extract.tables_from(wording.singulars(self._asked), self._schema)
        self._linked = mentioned
        if not self._budget.allows_linking():
            return
        asks = [self._short_ask(LINK_SCHEMA, self._settings.max_link_tokens)]
        if self._settings.max_keyword_tokens > 0:
            asks.append(self._short_ask(EXTRACT_KEYWORDS, self._settings.max_keyword_tokens))
        answered: list[list[Reply]] = yield AskTogether(tuple(asks))
        texts = [replies[0].text or "" for replies in answered]
        for ask, replies in zip(asks, answered, strict=True):
            self._note_failures(ask.stage, replies)
        named = extract.tables_from(texts[0], self._schema)
        self._linked = tuple(dict.fromkeys([*mentioned, *named]))
        keywords = extract.keywords_from(texts[1], _MAX_KEYWORDS) if len(texts) > 1 else ()
        if keywords:
            found: list[str] = yield Retrieve(RETRIEVE_VALUES, ", ".join(keywords))
            new = [value for value in found if value not in self._values][:_MAX_KEYWORD_VALUES]
            if new:
                self._values = [*self._values, *new]
                yield Extend(prompts.values_part(new))

    def _short_ask(self, stage: str, max_new_tokens: int) -> Ask:
        """One request for one line."""
        return Ask(
            stage,
            (prompts.tail(stage),),
            (0.0,),
            max_new_tokens,
            ("\n",),
            is_optional=True,
            model=self._budget.model,
        )

    def _generate_candidates(self) -> Steps:
        count = self._budget.num_candidates()
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
        agreement = Agreement(self._settings.enough_of(count))
        replies = yield from self._ask(
            GENERATE_CANDIDATE,
            tails,
            max_new_tokens=self._settings.max_sql_tokens,
            stop=_SQL_STOPS,
            agreement=agreement,
        )
        sqls = [extract.sql_from(reply.text or "") for reply in replies]
        self._num_replies = sum(reply.text is not None for reply in replies)
        executions = agreement.executions
        self._note_executions(list(executions.values()))
        self._candidates = [
            Candidate(strategy, executions.get(sql) if sql is not None else None)
            for strategy, sql, reply in zip(strategies, sqls, replies, strict=True)
            if not reply.is_late and (sql is None or sql in executions)
        ]
        self._is_settled = count > 1 and agreement.is_enough

    def _correct(self) -> Steps:
        """Rounds of self-correction, as many as there is time for."""
        for num_made in range(self._settings.max_rounds):
            is_needed = bool(without_rows(self._candidates))
            self._times.note_need(REVISE, is_needed)
            if not (is_needed and self._budget.allows_round(num_made)):
                return
            if not (yield from self._revise()):
                return

    def _revise(self) -> Generator[Step, Any, bool]:
        """One round; False when it changed nothing, so that another would not either."""
        wrong = without_rows(self._candidates)
        tails = [self._revise_tail(one) for one in wrong]
        replies = yield from self._ask(
            REVISE,
            tails,
            max_new_tokens=self._settings.max_sql_tokens,
            stop=_SQL_STOPS,
            is_optional=True,
        )
        new_sql = {
            one.sql: extract.sql_from(reply.text or "")
            for one, reply in zip(wrong, replies, strict=True)
        }
        executions = yield from self._execute(
            [new for old, new in new_sql.items() if new is not None and new != old]
        )
        self._candidates = [revised(one, new_sql, executions) for one in self._candidates]
        return bool(executions)

    def _revise_tail(self, wrong: Execution) -> str:
        """The database's words, our remarks on names it does not have, and the tables meant."""
        is_error = wrong.outcome is SqlOutcome.ERROR
        remarks = "; ".join(qualification.remarks(wrong.sql, self._schema)) if is_error else ""
        return prompts.tail(
            REVISE,
            sql=wrong.sql,
            error=wording.error_line(wrong, remarks),
            columns=self._table_lines(extract.tables_from(f"{wrong.sql} {remarks}", self._schema)),
        )

    def _test(self) -> Steps:
        """Unit tests, where results differ so that a choice has to be made."""
        groups = [group for group in groups_of(self._candidates) if group.has_rows][:_MAX_GROUPS]
        if self._settings.num_checks == 0:
            return
        self._times.note_need(GENERATE_UNIT_TEST, len(groups) >= 2)
        if len(groups) < 2:
            return
        num_checks = self._budget.num_checks(GENERATE_UNIT_TEST)
        if num_checks == 0:
            return
        replies = yield from self._ask(
            GENERATE_UNIT_TEST,
            [prompts.tail(GENERATE_UNIT_TEST)] * num_checks,
            max_new_tokens=self._settings.max_check_tokens,
            stop=("\n",),
            is_optional=True,
        )
        written = "\n".join(reply.text or "" for reply in replies)
        checks = extract.checks_from(written, num_checks)
        if checks:
            self._checks = checks[: self._budget.num_checks(EVALUATE)]
        if self._checks:
            yield from self._evaluate([group.members[0] for group in groups])

    def _evaluate(self, speakers: Sequence[int]) -> Steps:
        """Ask for every speaker and check whether the result passes."""
        pairs = [(speaker, check) for speaker in speakers for check in self._checks]
        tails = []
        for speaker, check in pairs:
            execution = self._candidates[speaker].execution
            assert execution is not None
            tails.append(prompts.tail(EVALUATE, check=check, **wording.preview(execution)))
        replies = yield from self._ask(
            EVALUATE, tails, max_new_tokens=3, stop=("\n",), is_optional=True
        )
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
        is_optional: bool = False,
        agreement: Agreement | None = None,
    ) -> Generator[Step, Any, list[Reply]]:
        """One stage's requests; failed ones are noted.

        A prompt's first request is greedy and its repetitions are sampled, as are revisions:
        their model was wrong before.
        """
        temperatures = [
            self._settings.temperature if stage == REVISE or tail in tails[:position] else 0.0
            for position, tail in enumerate(tails)
        ]
        replies: list[Reply] = yield Ask(
            stage,
            tuple(tails),
            tuple(temperatures),
            max_new_tokens,
            stop,
            is_optional=is_optional,
            agreement=agreement,
            model=self._budget.model,
        )
        self._note_failures(stage, replies)
        return replies

    def _note_failures(self, stage: str, replies: Sequence[Reply]) -> None:
        self._failures += [f"{stage}: {reply.error}" for reply in replies if reply.failed]

    def _execute(self, sqls: Sequence[str]) -> Generator[Step, Any, dict[str, Execution]]:
        """Every different statement once; what did not run is noted."""
        different = tuple(dict.fromkeys(sqls))
        if not different:
            return {}
        executions: list[Execution] = yield Execute(different)
        self._note_executions(executions)
        return {one.sql: one for one in executions}

    def _note_executions(self, executions: Sequence[Execution]) -> None:
        self._failures += [wording.failure_line(one) for one in executions if not one.ran]

    def _table_lines(self, names: Sequence[str]) -> list[str]:
        tables: list[Table | None] = [self._schema.table(name) for name in names]
        return [
            prompts.table_line(table, self._schema.dialect) for table in tables if table is not None
        ]
