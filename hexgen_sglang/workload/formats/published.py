"""From a flat list of published steps to stages: the rule shared by two formats.

All requests of a parallel step (generate_candidate, evaluate) of a workflow are one stage,
at the place of the first of them; every other request is a stage of its own, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from hexgen_sglang.workload.text2sql_steps import WORKFLOW_TYPE, is_parallel, step_name
from hexgen_sglang.workload.trace import TraceRequest, TraceWorkflow, chain


@dataclass(frozen=True, slots=True)
class PublishedRequest:
    """One row of the authors' files: the step's published name and two lengths."""

    step: str
    num_input_tokens: int
    num_output_tokens: int


def to_workflow(workflow_id: str, rows: list[PublishedRequest]) -> TraceWorkflow:
    """The workflow that the rows, in order, describe.

    Raises:
        ConfigError: a length or name out of range.
    """
    stages: list[tuple[str, list[TraceRequest]]] = []
    parallel: dict[str, list[TraceRequest]] = {}
    for row in rows:
        name = step_name(row.step)
        request = TraceRequest(row.num_input_tokens, row.num_output_tokens)
        if name in parallel:
            parallel[name].append(request)
            continue
        siblings = [request]
        stages.append((name, siblings))
        if is_parallel(name):
            parallel[name] = siblings
    return TraceWorkflow(
        workflow_id=workflow_id,
        workflow_type=WORKFLOW_TYPE,
        stages=chain([(name, tuple(siblings)) for name, siblings in stages]),
    )
