"""How many tokens prompts share, in the models' own tokens: what a prefix cache reuses.

The prompts are those that the stages really ask, with a script in the model's place.
"""

from __future__ import annotations

from typing import Any

import pytest

from hexgen_sglang.models.folder import cache_root
from hexgen_sglang.models.smollm2 import FOLDER_NAME
from hexgen_sglang.models.tiny import make_tiny_model
from hexgen_sglang.text2sql import prompts
from hexgen_sglang.text2sql.answer import Question
from hexgen_sglang.text2sql.examples import Example, derive_examples
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.introspection import read_schema
from hexgen_sglang.text2sql.sample import make_sample_database, sample_questions
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
# A tokenizer may join the last characters of a part with the first of the next.
SEAM = 1


@pytest.fixture(scope="module", params=["tiny", "default"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """The tiny model's, and the default model's where that has been made already."""
    if request.param == "tiny":
        folder = make_tiny_model()
    else:
        folder = cache_root() / FOLDER_NAME
        if not (folder / "tokenizer.json").is_file():
            pytest.skip("the default model is not in the cache; `hexgen-sglang model` makes it")
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    path = tmp_path_factory.mktemp("prefixes") / "bikes.sqlite"
    make_sample_database(path)
    return read_schema(path)


def execution(sql: str) -> Execution:
    if "bad" in sql:
        return Execution(sql, SqlOutcome.ERROR, message="no such column: bad")
    return Execution(sql, SqlOutcome.ROWS, ("a",), ((sql,),))


def prompts_of(
    question: str, schema: Schema, examples: tuple[Example, ...]
) -> dict[str, list[str]]:
    """Every prompt that one question asks, by stage."""
    asked: dict[str, list[str]] = {}
    prefix = ""

    def replies(ask: Ask) -> list[Reply]:
        asked.setdefault(ask.stage, []).extend(prefix + tail for tail in ask.tails)
        texts = TEXTS[ask.stage][: len(ask.tails)]
        if ask.agreement is not None:
            written, new = ask.agreement.statements(texts)
            ask.agreement.note(written, [execution(sql) for sql in new])
        return [Reply(text) for text in texts]

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
                result = ["bike.kind = 'cargo'"] if step.text == "cargo" else []
            case Extend():
                prefix += step.text
                result = None
            case AskTogether():
                result = [replies(ask) for ask in step.asks]
            case Ask():
                result = replies(step)
            case Execute():
                result = [execution(sql) for sql in step.sqls]


def num_shared(tokenizer: Any, texts: list[str]) -> int:
    """Tokens with which all texts begin."""
    ids = [tokenizer.encode(text).ids for text in texts]
    first, last = min(ids), max(ids)
    return next(
        (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )


def test_all_candidates_of_all_workflows_share_the_static_prefix(
    tokenizer: Any, schema: Schema
) -> None:
    candidates = [
        prompt
        for one in (schema, OTHER)
        for question in sample_questions()
        for prompt in prompts_of(question.question, one, derive_examples(one))["generate_candidate"]
    ]
    assert len(candidates) == 2 * 24 * 3
    num_static = len(tokenizer.encode(prompts.static_part()).ids)
    assert num_static > 200
    # The two databases' parts differ from their first table on.
    assert num_static - SEAM <= num_shared(tokenizer, candidates) <= num_static + 4


def test_all_stages_of_all_workflows_over_one_database_share_its_schema(
    tokenizer: Any, schema: Schema
) -> None:
    examples = derive_examples(schema)
    asked = [prompts_of(one.question, schema, examples) for one in sample_questions()]
    for by_stage in asked:
        assert set(by_stage) == set(TEXTS)
    common = prompts.static_part() + prompts.database_part(schema, examples)
    num_common = len(tokenizer.encode(common).ids)
    assert num_common > 600
    everything = [text for by_stage in asked for texts in by_stage.values() for text in texts]
    # Behind it comes "Q:", and then what differs.
    assert num_common - SEAM <= num_shared(tokenizer, everything) <= num_common + 4


def test_stages_of_one_workflow_share_all_but_their_tails(tokenizer: Any, schema: Schema) -> None:
    examples = derive_examples(schema)
    for sample in sample_questions():
        by_stage = prompts_of(sample.question, schema, examples)
        everything = [text for texts in by_stage.values() for text in texts]
        prefix = prompts.prefix(schema, examples, sample.question)
        assert num_shared(tokenizer, everything) >= len(tokenizer.encode(prefix).ids) - SEAM
        longest = max(len(tokenizer.encode(text).ids) for text in everything)
        assert num_shared(tokenizer, everything) > 0.8 * longest
        # From the candidates on, the values that keywords led to are shared too.
        later = [text for stage in list(by_stage)[2:] for text in by_stage[stage]]
        with_values = prefix + prompts.values_part(["bike.kind = 'cargo'"])
        assert num_shared(tokenizer, later) >= len(tokenizer.encode(with_values).ids) - SEAM
