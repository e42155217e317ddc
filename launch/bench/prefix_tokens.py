"""How many tokens the agent's prompts share: what a prefix cache can use again.

The prompts are those that the stages really ask for all questions of the sample database, with a
script in the model's place; tokens are counted by the tiny and the default model's tokenizers.
The same figures are asserted by `tests/contract/test_prompt_prefixes.py`.

    .venv/bin/python launch/bench/prefix_tokens.py --json FILE
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from hexgen_sglang.bench import machine
from hexgen_sglang.cluster.config import resolve_model
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.text2sql import prompts
from hexgen_sglang.text2sql.answer import Question
from hexgen_sglang.text2sql.examples import derive_examples
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.introspection import read_schema
from hexgen_sglang.text2sql.sample import ensure_sample_database, sample_questions
from hexgen_sglang.text2sql.schema import Column, Schema, Table
from hexgen_sglang.text2sql.settings import AgentSettings
from hexgen_sglang.text2sql.stages import QuestionStages
from hexgen_sglang.text2sql.steps import Ask, AskTogether, Execute, Extend, Reply, Retrieve

OTHER = Schema((Table("pet", (Column("pet_id", "INTEGER", is_key=True), Column("name", "TEXT"))),))
TEXTS = {
    "link_schema": (" trip",),
    "extract_keywords": (" cargo",),
    "generate_candidate": (" SELECT 1", " SELECT 2", " SELECT bad"),
    "revise": (" SELECT 3",),
    "generate_unit_test": (" There is one number.", " It is positive."),
    "evaluate": (" yes",) * 6,
}
VALUES = ["bike.kind = 'cargo'"]


def execution(sql: str) -> Execution:
    """What running the script's SQL gives."""
    if "bad" in sql:
        return Execution(sql, SqlOutcome.ERROR, message="no such column: bad")
    return Execution(sql, SqlOutcome.ROWS, ("a",), ((sql,),))


def prompts_of(question: str, schema: Schema) -> dict[str, list[str]]:
    """Every prompt that one question asks, by stage, in the order of the stages."""
    asked: dict[str, list[str]] = {}
    prefix = ""

    def replies(ask: Ask) -> list[Reply]:
        asked.setdefault(ask.stage, []).extend(prefix + tail for tail in ask.tails)
        texts = TEXTS[ask.stage][: len(ask.tails)]
        if ask.agreement is not None:
            written, new = ask.agreement.statements(texts)
            ask.agreement.note(written, [execution(sql) for sql in new])
        return [Reply(text) for text in texts]

    examples = derive_examples(schema)
    stages = QuestionStages(Question(question), schema, examples, AgentSettings(), lambda: None)
    steps = stages.run()
    result: Any = None
    while True:
        try:
            step = steps.send(result)
        except StopIteration:
            return asked
        match step:
            case Retrieve():
                result = VALUES if step.text == "cargo" else []
            case Extend():
                prefix += step.text
                result = None
            case AskTogether():
                result = [replies(ask) for ask in step.asks]
            case Ask():
                result = replies(step)
            case Execute():
                result = [execution(sql) for sql in step.sqls]


@dataclass(frozen=True)
class Shared:
    """Figures of one tokenizer, all in tokens.

    Attributes:
        num_candidates: prompts for a candidate, over two databases.
        static, static_shared: of the static part, and with which all those prompts begin.
        num_prompts: of all stages of all questions over the sample database.
        database, database_shared: of static part and schema, and with which all those begin.
        workflow, workflow_shared: of static part, schema and question, and with which all
            prompts of one workflow begin; by question.
        values, values_shared: the same from the candidates on, with the values found.
        longest: prompt of each workflow.
    """

    num_candidates: int
    static: int
    static_shared: int
    num_prompts: int
    database: int
    database_shared: int
    workflow: list[int]
    workflow_shared: list[int]
    values: list[int]
    values_shared: list[int]
    longest: list[int]


def measure(tokenizer: Any, schema: Schema) -> Shared:
    """Count them for the sample questions."""

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    def num_shared(texts: list[str]) -> int:
        ids = [tokenizer.encode(text).ids for text in texts]
        first, last = min(ids), max(ids)
        return next(
            (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
        )

    def flat(by_stage: dict[str, list[str]], since: str = "link_schema") -> list[str]:
        stages = list(by_stage)
        return [text for stage in stages[stages.index(since) :] for text in by_stage[stage]]

    questions = [one.question for one in sample_questions()]
    asked = [prompts_of(one, schema) for one in questions]
    elsewhere = [prompts_of(one, OTHER) for one in questions]
    candidates = [text for one in [*asked, *elsewhere] for text in one["generate_candidate"]]
    examples = derive_examples(schema)
    prefixes = [prompts.prefix(schema, examples, one) for one in questions]
    everything = [text for one in asked for text in flat(one)]
    return Shared(
        num_candidates=len(candidates),
        static=count(prompts.static_part()),
        static_shared=num_shared(candidates),
        num_prompts=len(everything),
        database=count(prompts.static_part() + prompts.database_part(schema, examples)),
        database_shared=num_shared(everything),
        workflow=[count(one) for one in prefixes],
        workflow_shared=[num_shared(flat(one)) for one in asked],
        values=[count(one + prompts.values_part(VALUES)) for one in prefixes],
        values_shared=[num_shared(flat(one, "generate_candidate")) for one in asked],
        longest=[max(count(text) for text in flat(one)) for one in asked],
    )


def main() -> int:
    """Count, print, write; 2 when a model cannot be had."""
    parser = argparse.ArgumentParser(description="Tokens that the agent's prompts share.")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    schema = read_schema(ensure_sample_database())
    result: dict[str, Any] = {}
    try:
        for name in ("tiny", "default"):
            path = Path(resolve_model(name)) / "tokenizer.json"
            found = measure(Tokenizer.from_file(str(path)), schema)
            result[name] = asdict(found)
            print(
                f"{name}: {found.static_shared} tokens shared by {found.num_candidates} candidates "
                f"over two databases; {found.database_shared} by {found.num_prompts} prompts over "
                f"one; {statistics.median(found.workflow_shared):g} by a workflow's stages, of "
                f"{statistics.median(found.longest):g} of its longest prompt (medians)"
            )
    except HexgenError as error:
        print(f"prefix_tokens: {error}", file=sys.stderr)
        return 2
    if args.json is not None:
        args.json.write_text(json.dumps(result | {"versions": machine.versions()}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
