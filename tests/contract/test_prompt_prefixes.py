"""How many tokens prompts share, in the models' own tokens: what a prefix cache reuses.

The prompts are those that the stages really ask, as `launch/bench/prefix_tokens.py` counts them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hexgen_sglang.models.folder import cache_root
from hexgen_sglang.models.smollm2 import FOLDER_NAME
from hexgen_sglang.models.tiny import make_tiny_model
from hexgen_sglang.text2sql.introspection import read_schema
from hexgen_sglang.text2sql.sample import make_sample_database
from hexgen_sglang.text2sql.schema import Schema

BENCH = Path(__file__).parents[2] / "launch" / "bench" / "prefix_tokens.py"
# A tokenizer may join the last characters of a part with the first of the next.
SEAM = 1


def load_bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prefix_tokens_bench", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bench = load_bench()


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    path = tmp_path_factory.mktemp("prefixes") / "bikes.sqlite"
    make_sample_database(path)
    return read_schema(path)


@pytest.fixture(scope="module", params=["tiny", "default"])
def shared(request: pytest.FixtureRequest, schema: Schema) -> Any:
    """By the tiny model's tokenizer, and by the default model's where that has been made."""
    if request.param == "tiny":
        folder = make_tiny_model()
    else:
        folder = cache_root() / FOLDER_NAME
        if not (folder / "tokenizer.json").is_file():
            pytest.skip("the default model is not in the cache; `hexgen-sglang model` makes it")
    from tokenizers import Tokenizer

    return bench.measure(Tokenizer.from_file(str(folder / "tokenizer.json")), schema)


def test_all_candidates_of_all_workflows_share_the_static_prefix(shared: Any) -> None:
    assert shared.num_candidates == 2 * 24 * 3
    assert shared.static > 200
    # The two databases' parts differ from their first table on.
    assert shared.static - SEAM <= shared.static_shared <= shared.static + 4


def test_all_stages_of_all_workflows_over_one_database_share_its_schema(
    shared: Any, schema: Schema
) -> None:
    assert set(bench.prompts_of("How many trips?", schema)) == set(bench.TEXTS)
    assert shared.num_prompts >= 24 * 10
    assert shared.database > 600
    # Behind it comes "Q:", and then what differs.
    assert shared.database - SEAM <= shared.database_shared <= shared.database + 4


def test_stages_of_one_workflow_share_all_but_their_tails(shared: Any) -> None:
    for whole, common, longest in zip(
        shared.workflow, shared.workflow_shared, shared.longest, strict=True
    ):
        assert common >= whole - SEAM
        assert common > 0.8 * longest
    # From the candidates on, the values that keywords led to are shared too.
    for whole, common in zip(shared.values, shared.values_shared, strict=True):
        assert common >= whole - SEAM
