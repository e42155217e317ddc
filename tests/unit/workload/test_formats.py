"""Reading traces: every format gives the same model, and errors say where and what."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.formats import jsonl, load_trace
from hexgen_sglang.workload.formats.table import COLUMNS
from hexgen_sglang.workload.trace import PrefixPart, PrefixScope, TraceRequest

SHARED = Path(__file__).resolve().parents[4] / "shared" / "traces"

ROWS = [
    ("Information Retriever", 301, 26),
    ("generate_candidate_llama-agent", 11909, 663),
    ("generate_candidate_llama-agent", 8043, 439),
    ("revise", 5859, 74),
    ("revise", 5861, 70),
    ("unit_tester", 271, 6),
    ("evaluate", 958, 22),
    ("evaluate", 961, 22),
    ("evaluate", 970, 30),
    ("unit_tester", 278, 4),
]
STAGES = [
    ("information_retriever", 1),
    ("generate_candidate", 2),
    ("revise", 1),
    ("revise", 1),
    ("unit_tester", 1),
    ("evaluate", 3),
    ("unit_tester", 1),
]


def flow_json(rows: list[tuple[str, int, int]]) -> list[dict[str, object]]:
    """One workflow in HexGen-Flow's format."""
    return [
        {
            "Text2SQLRequest": [
                {"step": step, "input_length": num_input, "output_length": num_output}
                for step, num_input, num_output in rows
            ]
        }
    ]


def table_rows() -> list[dict[str, object]]:
    return [dict(zip(COLUMNS, ("q7", *row), strict=True)) for row in ROWS]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"trace.{kind}"
    if kind == "json":
        path.write_text(json.dumps(flow_json(ROWS), indent=4))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(table_rows())
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table_rows()))
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        parquet.write_table(pyarrow.Table.from_pylist(table_rows()), path)
    return path


@pytest.mark.parametrize("kind", ["json", "csv", "jsonl", "parquet"])
def test_authors_formats_give_the_same_stages(tmp_path: Path, kind: str) -> None:
    trace = load_trace(write(tmp_path, kind))
    (workflow,) = trace.workflows
    assert [(stage.name, len(stage.requests)) for stage in workflow.stages] == STAGES
    assert [stage.after for stage in workflow.stages] == [(), (0,), (1,), (2,), (3,), (4,), (5,)]
    lengths = [(r.num_input_tokens, r.num_output_tokens) for _, _, r in workflow.requests()]
    assert lengths == [row[1:] for row in ROWS]
    assert workflow.workflow_type == "text2sql"


def test_parallel_requests_need_not_stand_together(tmp_path: Path) -> None:
    rows = [("evaluate", 900, 22), ("unit_tester", 271, 6), ("evaluate", 901, 23)]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(flow_json(rows)))
    stages = load_trace(path).workflows[0].stages
    assert [(stage.name, len(stage.requests)) for stage in stages] == [
        ("evaluate", 2),
        ("unit_tester", 1),
    ]


def test_unknown_step_keeps_a_name_a_tag_can_carry(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(flow_json([('my "own" step', 10, 1)])))
    assert load_trace(path).workflows[0].stages[0].name == "my__own__step"


@pytest.mark.parametrize(
    ("field", "value"), [("input_length", "long"), ("output_length", 0), ("step", "")]
)
def test_flow_error_names_file_line_field_and_value(
    tmp_path: Path, field: str, value: object
) -> None:
    elements = flow_json(ROWS)
    requests = elements[0]["Text2SQLRequest"]
    assert isinstance(requests, list)
    requests[2][field] = value
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(elements, indent=1))
    with pytest.raises(ConfigError) as caught:
        load_trace(path)
    message = str(caught.value)
    assert f"{path}:" in message
    assert f"{field}={value!r}" in message
    # The request's object opens on the reported line: "[", "{", its key, then 5 lines each.
    assert message.startswith(f"{path}:{4 + 2 * 5}: ")
    assert path.read_text().splitlines()[4 + 2 * 5 - 1].strip() == "{"


def test_csv_error_names_line_field_and_value(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(",".join(COLUMNS) + "\nq,revise,10,1\nq,revise,-3,1\n")
    with pytest.raises(ConfigError, match=rf"{path}:3: input_length='-3'"):
        load_trace(path)


def test_csv_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("Text2SQLRequest_id,step_name,input_length\nq,revise,10\n")
    with pytest.raises(ConfigError, match="output_length"):
        load_trace(path)


def test_own_format_round_trips(tmp_path: Path) -> None:
    original = load_trace(jsonl.EXAMPLE)
    path = tmp_path / "again.jsonl"
    jsonl.write(original, path)
    assert load_trace(path).workflows == original.workflows


def test_example_states_dependencies_tool_time_and_prefixes() -> None:
    agent = load_trace(jsonl.EXAMPLE).workflows[1]
    assert [stage.after for stage in agent.stages] == [(), (0,), (0,), (1, 2)]
    assert agent.stages[1].tool_s == 0.4
    assert agent.stages[0].requests[0] == TraceRequest(
        900,
        120,
        (
            PrefixPart(PrefixScope.TEMPLATE, "system", 500),
            PrefixPart(PrefixScope.WORKFLOW, "conversation", 400),
        ),
    )
    assert agent.stages[2].requests[0].prefix == ()
    assert agent.last_stages() == frozenset({3})


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ('{"stage":"a","requests":[{"input_tokens":0,"output_tokens":1}]}', "value '0'"),
        ('{"stage":"a b","requests":[{"input_tokens":1,"output_tokens":1}]}', "stage='a b'"),
        ('{"stage":"a","requests":[]}', "requests"),
        ('{"stage":"a","after":["z"],"requests":[{"input_tokens":1,"output_tokens":1}]}', "'z'"),
        ('{"stage":"a","tool_s":-1,"requests":[{"input_tokens":1,"output_tokens":1}]}', "-1"),
        (
            '{"stage":"a","colour":1,"requests":[{"input_tokens":1,"output_tokens":1}]}',
            "colour",
        ),
        (
            '{"stage":"a","requests":[{"input_tokens":5,"output_tokens":1,'
            '"prefix":[{"scope":"template","name":"t","tokens":6}]}]}',
            "prefix tokens=6",
        ),
    ],
)
def test_own_format_error_names_line_and_value(tmp_path: Path, stage: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(
        f'{{"hexgen_trace": 1}}\n\n{{"workflow_id":"q","workflow_type":"t","stages":[{stage}]}}\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_trace(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "fits no format"),
        ("hello", "'hello' fits no format"),
        ('{"a": 1}', "fit no format"),
        ("[]", "at least one workflow"),
        ("[1, 2", "not valid JSON"),
        ('{"hexgen_trace": 2}', "value '2'"),
        ('{"hexgen_trace": 1}', "no workflow behind the header"),
        ('[{"Text2SQLRequest": []}]', "at least one request"),
    ],
)
def test_what_fits_no_format_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r".") as caught:
        load_trace(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_and_bad_synthetic_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_trace(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match="synthetic"):
        load_trace("synthetic:many")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public traces are not beside the checkout")
@pytest.mark.parametrize(
    ("name", "workflows", "requests", "inputs", "outputs"),
    [("trace1", 90, (11, 25), 50_477, 1_981), ("financial", 94, (10, 26), 31_917, 1_599)],
)
def test_public_traces_have_their_published_means(
    name: str, workflows: int, requests: tuple[int, int], inputs: int, outputs: int
) -> None:
    trace = load_trace(SHARED / f"{name}.json")
    assert len(trace.workflows) == workflows
    counts = [workflow.num_requests for workflow in trace.workflows]
    assert (min(counts), max(counts)) == requests
    mean_input = sum(workflow.num_input_tokens for workflow in trace.workflows) / workflows
    mean_output = sum(workflow.num_output_tokens for workflow in trace.workflows) / workflows
    assert mean_input == pytest.approx(inputs, abs=1)
    assert mean_output == pytest.approx(outputs, abs=1)
