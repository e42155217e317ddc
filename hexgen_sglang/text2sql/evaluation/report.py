"""What an evaluation leaves behind: a result for each question, and figures made of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from hexgen_sglang.results.statistics import quantile

REPORT_VERSION = 1


class QuestionResult(Struct, frozen=True, forbid_unknown_fields=True):
    """One question's result.

    Attributes:
        outcome: how the predicted SQL ended (`SqlOutcome`), or "no_sql".
        message: for an outcome without rows: what went wrong; else "".
        gold_error: why no gold query could be compared with; "" for none.
        is_right, in_order, as_set: see `matching.Match`.
        elapsed_s: seconds to write the SQL; None where that is not known.
        sql_s: seconds to run it.
    """

    question_id: str
    db_id: str
    difficulty: str
    question: str
    gold_sql: str
    predicted_sql: str | None
    outcome: str
    message: str
    gold_error: str
    is_right: bool
    in_order: bool
    as_set: bool
    num_rounds: int
    num_requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    elapsed_s: float | None
    sql_s: float
    met_deadline: bool | None


class Figures(Struct, frozen=True):
    """Figures over some questions; shares are of all of them, means of a question.

    Attributes:
        execution_accuracy: rows equal gold's, in any order; `_in_order`: in gold's order where
            it has one; `_as_set`: BIRD's rule.
        valid_sql_frac: the predicted SQL ran to its end.
        gold_failed: questions whose gold could not be compared with; they count as wrong.
        latency_*_s: to write the SQL; None where that is not known.
        rounds: rounds of self-correction used -> questions.
    """

    num_questions: int
    execution_accuracy: float
    execution_accuracy_in_order: float
    execution_accuracy_as_set: float
    valid_sql_frac: float
    gold_failed: int
    outcomes: dict[str, int]
    rounds_mean: float
    rounds: dict[str, int]
    requests_mean: float
    prompt_tokens_mean: float
    cached_tokens_mean: float
    output_tokens_mean: float
    latency_mean_s: float | None
    latency_p50_s: float | None
    latency_p90_s: float | None
    sql_mean_s: float
    deadline_met_frac: float | None


class EvalReport(Figures, frozen=True):
    """The whole report; its own figures are over all questions."""

    version: int
    questions: str
    predictions: str
    settings: dict[str, object]
    made_by: dict[str, str]
    by_difficulty: dict[str, Figures]
    by_database: dict[str, Figures]
    results: list[QuestionResult]


def figures_of(results: Sequence[QuestionResult]) -> Figures:
    """Figures over results, at least one."""
    count = len(results)
    outcomes = [result.outcome for result in results]
    rounds = [result.num_rounds for result in results]
    times_s = [result.elapsed_s for result in results if result.elapsed_s is not None]
    met = [result.met_deadline for result in results if result.met_deadline is not None]
    return Figures(
        num_questions=count,
        execution_accuracy=sum(result.is_right for result in results) / count,
        execution_accuracy_in_order=sum(result.in_order for result in results) / count,
        execution_accuracy_as_set=sum(result.as_set for result in results) / count,
        valid_sql_frac=sum(outcome in {"rows", "empty"} for outcome in outcomes) / count,
        gold_failed=sum(bool(result.gold_error) for result in results),
        outcomes={name: outcomes.count(name) for name in sorted(set(outcomes))},
        rounds_mean=sum(rounds) / count,
        rounds={str(number): rounds.count(number) for number in sorted(set(rounds))},
        requests_mean=sum(result.num_requests for result in results) / count,
        prompt_tokens_mean=sum(result.prompt_tokens for result in results) / count,
        cached_tokens_mean=sum(result.cached_tokens for result in results) / count,
        output_tokens_mean=sum(result.output_tokens for result in results) / count,
        latency_mean_s=sum(times_s) / len(times_s) if times_s else None,
        latency_p50_s=quantile(times_s, 0.5) if times_s else None,
        latency_p90_s=quantile(times_s, 0.9) if times_s else None,
        sql_mean_s=sum(result.sql_s for result in results) / count,
        deadline_met_frac=sum(met) / len(met) if met else None,
    )


def report_of(
    results: Sequence[QuestionResult],
    questions: str,
    predictions: str,
    settings: Mapping[str, object],
    made_by: Mapping[str, str],
) -> EvalReport:
    """The report on all results, at least one, in the order of the questions."""
    whole = figures_of(results)
    return EvalReport(
        **{name: getattr(whole, name) for name in Figures.__struct_fields__},
        version=REPORT_VERSION,
        questions=questions,
        predictions=predictions,
        settings=dict(settings),
        made_by=dict(made_by),
        by_difficulty=_grouped(results, "difficulty"),
        by_database=_grouped(results, "db_id"),
        results=list(results),
    )


def _grouped(results: Sequence[QuestionResult], field: str) -> dict[str, Figures]:
    """Figures for each value of a field, in order of first appearance."""
    groups: dict[str, list[QuestionResult]] = {}
    for result in results:
        groups.setdefault(getattr(result, field), []).append(result)
    return {value: figures_of(members) for value, members in groups.items()}
