"""The agent's stages, driven by hand: a script stands for the model, a table for the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.agent import Agent, AgentSettings, Ask, Execute, Reply
from hexgen_sglang.text2sql.answer import Answer, AnswerOutcome, Question
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.schema import Column, Schema, Table

SCHEMA = Schema(
    (
        Table("member", (Column("id", "INTEGER", is_key=True), Column("name", "TEXT"))),
        Table("trip", (Column("id", "INTEGER"), Column("minutes", "INTEGER"))),
    )
)
# What the database of these tests knows; anything else is an error.
RESULTS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "SELECT 1": ((1,),),
    "SELECT 1.0": ((1.0,),),
    "SELECT 2": ((2,),),
    "SELECT none": (),
}

Model = Callable[[Ask], list[str | None]]


def execute(sql: str) -> Execution:
    if sql not in RESULTS:
        return Execution(sql, SqlOutcome.ERROR, message=f"no such column: {sql[7:]}")
    rows = RESULTS[sql]
    return Execution(sql, SqlOutcome.ROWS if rows else SqlOutcome.EMPTY, ("a",), rows)


class Driver:
    """Runs an agent on a scripted model and remembers what it asked and executed."""

    def __init__(
        self,
        script: dict[str, list[list[str | None]]],
        settings: AgentSettings | None = None,
        remaining_s: Callable[[], float | None] = lambda: None,
        question: str = "How many trips?",
    ) -> None:
        self.asks: list[Ask] = []
        self.executed: list[str] = []
        self.agent = Agent(Question(question), SCHEMA, (), settings or AgentSettings(), remaining_s)
        self.answer = self._run(script)

    def _run(self, script: dict[str, list[list[str | None]]]) -> Answer:
        steps = self.agent.run()
        result: Any = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                answer: Answer = end.value
                return answer
            if isinstance(step, Execute):
                self.executed += step.sqls
                result = [execute(sql) for sql in step.sqls]
            else:
                self.asks.append(step)
                texts = script[step.stage].pop(0)
                assert len(texts) == len(step.tails) == len(step.temperatures)
                result = [Reply(text, "" if text is not None else "boom") for text in texts]

    @property
    def stages(self) -> list[tuple[str, int]]:
        return [(ask.stage, len(ask.tails)) for ask in self.asks]


def test_agreeing_candidates_need_no_more_stages() -> None:
    driver = Driver(
        {
            "link_schema": [[" trip"]],
            "generate_candidate": [[" SELECT 1", "SELECT 1.0;", " SELECT 1 ; x"]],
        }
    )
    assert driver.stages == [("link_schema", 1), ("generate_candidate", 3)]
    assert driver.executed == ["SELECT 1", "SELECT 1.0"]
    answer = driver.answer
    assert (answer.outcome, answer.sql, answer.rows) == (AnswerOutcome.ROWS, "SELECT 1", ((1,),))
    assert answer.linked_tables == ("trip",)
    assert answer.failures == ()


def test_candidates_differ_in_prompt_and_the_first_are_greedy() -> None:
    driver = Driver(
        {"link_schema": [["trip"]], "generate_candidate": [["SELECT 1"] * 5]},
        AgentSettings(num_candidates=5, temperature=0.5),
    )
    ask = driver.asks[1]
    assert len(set(ask.tails)) == 3
    assert ask.temperatures == (0.0, 0.0, 0.0, 0.5, 0.5)
    assert all(tail.endswith("SQL:") for tail in ask.tails)
    assert "Tables: trip" in ask.tails[1]
    assert "trip(id, minutes)" in ask.tails[2]


def test_tables_are_linked_from_the_question_and_from_the_model() -> None:
    driver = Driver(
        {"link_schema": [[" member, nothing"]], "generate_candidate": [["SELECT 1"] * 3]},
        question="Which trips?",
    )
    assert driver.answer.linked_tables == ("trip", "member")


def test_errors_and_empty_results_are_revised_with_the_databases_words() -> None:
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT bad", "SELECT bad", "SELECT none"]],
            "revise": [["SELECT worse", "SELECT 2"], ["SELECT 1"]],
            "generate_unit_test": [["", ""]],
        }
    )
    assert driver.stages[2:] == [("revise", 2), ("revise", 1), ("generate_unit_test", 2)]
    first, second = driver.asks[2], driver.asks[3]
    assert "SQL: SELECT bad;\nError: no such column: bad\n" in first.tails[0]
    assert "Error: the result is empty\n" in first.tails[1]
    assert "SELECT worse;\nError: no such column: worse\n" in second.tails[0]
    assert [one.num_revisions for one in driver.answer.candidates] == [2, 2, 1]
    assert driver.answer.sql == "SELECT 1"
    assert "error: no such column: bad: SELECT bad" in driver.answer.failures


def test_revising_stops_after_the_last_round_and_when_nothing_changes() -> None:
    script = {
        "link_schema": [[""]],
        "generate_candidate": [["SELECT bad", "SELECT bad", "SELECT bad"]],
        "revise": [["SELECT bad2"], ["SELECT bad3"], ["SELECT bad4"]],
    }
    driver = Driver(script, AgentSettings(max_rounds=2))
    assert [stage for stage, _ in driver.stages].count("revise") == 2
    assert driver.answer.outcome is AnswerOutcome.NO_VALID_SQL
    assert (driver.answer.sql, driver.answer.message) == ("SELECT bad3", "no such column: bad3")
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT bad"] * 3],
            "revise": [["I do not know"]],
        }
    )
    assert [stage for stage, _ in driver.stages].count("revise") == 1
    assert driver.answer.outcome is AnswerOutcome.NO_VALID_SQL


def test_an_empty_result_is_kept_when_its_revision_fails() -> None:
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT none"] * 3],
            "revise": [["SELECT bad"], ["SELECT bad"]],
        }
    )
    assert (driver.answer.outcome, driver.answer.sql) == (AnswerOutcome.EMPTY, "SELECT none")
    assert driver.answer.message == "the result is empty"


def test_differing_results_are_put_to_the_test() -> None:
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT 1", "SELECT 2", "SELECT 1"]],
            "generate_unit_test": [[" One number.", " It is two."]],
            "evaluate": [[" no", " no", " yes", " Yes."]],
        }
    )
    assert driver.stages[2:] == [("generate_unit_test", 2), ("evaluate", 4)]
    assert driver.answer.checks == ("One number.", "It is two.")
    assert "Result: a = 2\n" in driver.asks[-1].tails[-1]
    assert driver.answer.sql == "SELECT 2"
    assert [one.checks_passed for one in driver.answer.candidates] == [0, 2, 0]


def test_without_checks_agreement_decides() -> None:
    driver = Driver(
        {"link_schema": [[""]], "generate_candidate": [["SELECT 1", "SELECT 2", "SELECT 2"]]},
        AgentSettings(num_checks=0),
    )
    assert driver.stages == [("link_schema", 1), ("generate_candidate", 3)]
    assert driver.answer.sql == "SELECT 2"


def test_optional_stages_are_skipped_once_the_deadline_has_passed() -> None:
    script = {"link_schema": [[""]], "generate_candidate": [["SELECT 1", "SELECT 2", "SELECT x"]]}
    driver = Driver(script, remaining_s=lambda: -0.1)
    assert driver.answer.skipped == ("revise", "generate_unit_test")
    assert driver.answer.outcome is AnswerOutcome.ROWS


def test_a_model_that_writes_no_sql_is_an_outcome() -> None:
    driver = Driver({"link_schema": [["?"]], "generate_candidate": [["Sorry.", "", "no idea"]]})
    assert (driver.answer.outcome, driver.answer.sql) == (AnswerOutcome.NO_SQL, None)
    assert driver.answer.message == "the model wrote no SQL"


def test_failed_requests_are_an_outcome_too() -> None:
    driver = Driver({"link_schema": [[None]], "generate_candidate": [[None, None, None]]})
    assert driver.answer.outcome is AnswerOutcome.MODEL_FAILED
    assert driver.answer.message == "generate_candidate: boom"
    assert len(driver.answer.failures) == 4


def test_one_failed_sibling_does_not_spoil_the_others() -> None:
    driver = Driver(
        {
            "link_schema": [["trip"]],
            "generate_candidate": [[None, "SELECT bad", "SELECT 2"]],
            "revise": [[None]],
        }
    )
    assert (driver.answer.outcome, driver.answer.sql) == (AnswerOutcome.ROWS, "SELECT 2")


def test_stages_of_a_workflow_share_its_prefix_by_construction() -> None:
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT 1", "SELECT 2", "SELECT bad"]],
            "revise": [["SELECT 1"]],
            "generate_unit_test": [["One.", "Two."]],
            "evaluate": [["yes"] * 4],
        }
    )
    assert driver.agent.prefix.endswith("Q: How many trips?\n")
    for ask in driver.asks:
        assert all(tail and not tail.startswith(driver.agent.prefix) for tail in ask.tails)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_candidates", 0),
        ("max_rounds", 11),
        ("num_checks", 9),
        ("max_sql_tokens", 7),
        ("max_check_tokens", 3),
        ("max_link_tokens", 600),
        ("temperature", 2.5),
    ],
)
def test_settings_are_bounded(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"AgentSettings\.{field}={value}: must be"):
        AgentSettings(**{field: value})  # type: ignore[arg-type]
