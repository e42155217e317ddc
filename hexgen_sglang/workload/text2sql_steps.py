"""What is published about the steps of the Text-to-SQL workflow behind the public traces.

Read by the trace readers (names, parallel steps), by `prefixes.py` (template lengths) and by
`synthetic.py`. Numbers are tokens of the Llama-3.1 tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WORKFLOW_TYPE = "text2sql"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the published workflow.

    Attributes:
        name: the name used in tags and tables.
        published_names: its names in the authors' files.
        template_tokens: length of the static prompt template, a prefix common to all requests
            of the step. Source: the authors' table. Two lengths: the first holds for the
            first `num_long` requests of the step in a workflow, the second for the others.
        num_long: see `template_tokens`; 0 when there is one length.
        parallel: all its requests of one workflow are one stage.
        own_tail_tokens: tokens at the end of the prompt that no other request has, at least.
            An assumption: a draft's SQL and error for revise, the unit test for evaluate, the
            evidence or keyword for the retrieval steps; see `prefixes.py`.
    """

    name: str
    published_names: tuple[str, ...]
    template_tokens: tuple[int, ...]
    num_long: int = 0
    parallel: bool = False
    own_tail_tokens: int = 16


# The two candidates of the public traces differ by 3,866 tokens in every workflow, which is
# the difference of the two published template lengths: the first has the long one.
STEPS = (
    Step("information_retriever", ("Information Retriever",), (213,), own_tail_tokens=8),
    Step("extract_keywords", ("extract_keywords",), (630,)),
    Step(
        "generate_candidate",
        ("generate_candidate_llama-agent", "generate_candidate"),
        (9158, 5292),
        num_long=4,
        parallel=True,
    ),
    Step("revise", ("revise",), (3059,), own_tail_tokens=20),
    Step("unit_tester", ("unit_tester",), (213,), own_tail_tokens=8),
    Step("generate_unit_test", ("generate_unit_test",), (436,)),
    Step("evaluate", ("evaluate",), (261,), parallel=True, own_tail_tokens=32),
)

STEP_BY_NAME = {step.name: step for step in STEPS}
_BY_PUBLISHED_NAME = {name: step for step in STEPS for name in (*step.published_names, step.name)}


def step_name(published_name: str) -> str:
    """The name used in tags for a step of the authors' files.

    A step that is not known keeps its name, with "_" for each character a tag cannot carry.
    """
    step = _BY_PUBLISHED_NAME.get(published_name)
    if step is not None:
        return step.name
    return re.sub(r"[^A-Za-z0-9._:/@+=-]", "_", published_name)[:64]


def is_parallel(name: str) -> bool:
    """Whether all requests of the step in one workflow are one parallel stage."""
    step = STEP_BY_NAME.get(name)
    return step is not None and step.parallel


def template_of(step: Step, index: int, count: int) -> int:
    """Which of the step's templates the request has: an index into `template_tokens`.

    `index` counts the step's requests within the workflow from 0, `count` is how many there
    are. With two requests, as in the public traces, the first has the long template and the
    second the short one; with more, the first `num_long` have the long one.
    """
    if not step.num_long:
        return 0
    num_long = 1 if count == 2 else step.num_long
    return 0 if index < num_long else 1
