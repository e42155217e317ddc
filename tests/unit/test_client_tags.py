"""The tag helper: what it puts into a request, and that it needs no SGLang."""

import subprocess
import sys

import pytest

from hexgen_sglang.client import CoordinatorClient, Workflow
from hexgen_sglang.core.errors import ConfigError, ProtocolError, WorkerUnavailableError
from hexgen_sglang.protocol.tag import tag_from_body, tag_from_headers


class Clock:
    """Seconds that stand still until moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_tag_is_what_the_coordinator_reads_back() -> None:
    workflow = Workflow(type="text2sql", deadline_s=20, tenant="shop", clock=Clock())
    body = workflow.tag(
        "generate_candidate", siblings=3, sibling_index=2, final=True, expected_output_tokens=64
    )
    tag = tag_from_body(body["hexgen"])
    assert (tag.workflow_id, tag.workflow_type) == (workflow.workflow_id, "text2sql")
    assert (tag.stage, tag.siblings, tag.sibling_index) == ("generate_candidate", 3, 2)
    assert (tag.budget_ms, tag.tenant, tag.final) == (20_000, "shop", True)
    assert tag.expected_output_tokens == 64


def test_headers_say_the_same_as_the_body() -> None:
    workflow = Workflow(type="text2sql", deadline_s=20, clock=Clock())
    options = {"siblings": 4, "sibling_index": 1, "final": True}
    from_headers = tag_from_headers(workflow.headers("revise", **options))
    assert from_headers == tag_from_body(workflow.tag("revise", **options)["hexgen"])


def test_budget_is_what_is_left_when_the_tag_is_made() -> None:
    clock = Clock()
    workflow = Workflow(deadline_s=2.5, clock=clock)
    clock.now_s += 1.25
    assert workflow.fields()["budget_ms"] == 1250
    assert workflow.remaining_s() == 1.25


def test_a_passed_deadline_is_still_a_valid_tag() -> None:
    clock = Clock()
    workflow = Workflow(deadline_s=1, clock=clock)
    clock.now_s += 60
    assert workflow.remaining_s() == -59
    assert tag_from_body(workflow.fields("late")).budget_ms == 1


def test_without_a_deadline_there_is_no_budget() -> None:
    assert "budget_ms" not in Workflow().fields("a")
    assert Workflow().remaining_s() is None


def test_ids_differ_and_can_be_given() -> None:
    assert Workflow().workflow_id != Workflow().workflow_id
    assert Workflow(workflow_id="order-17").fields()["workflow_id"] == "order-17"


@pytest.mark.parametrize("deadline_s", [0, -1, 86_401, float("nan"), float("inf")])
def test_an_impossible_deadline_is_refused(deadline_s: float) -> None:
    with pytest.raises(ConfigError, match=r"deadline_s=.*86400"):
        Workflow(deadline_s=deadline_s)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"workflow_id": "two words"}, "workflow_id"),
        ({"workflow_id": ""}, "workflow_id"),
        ({"type": "x" * 65}, "workflow_type"),
        ({"tenant": "quo'te"}, "tenant"),
    ],
)
def test_a_malformed_name_is_refused_at_once(options: dict[str, str], field: str) -> None:
    with pytest.raises(ProtocolError, match=field):
        Workflow(**options)  # type: ignore[arg-type]


def test_a_malformed_stage_or_fan_out_is_refused_when_tagged() -> None:
    with pytest.raises(ProtocolError, match="stage"):
        Workflow().tag("generate candidate")
    with pytest.raises(ProtocolError, match="sibling_index=3"):
        Workflow().tag("a", siblings=3, sibling_index=3)
    with pytest.raises(ProtocolError, match="siblings"):
        Workflow().tag("a", siblings=0)


def test_ending_needs_to_know_the_coordinator() -> None:
    with pytest.raises(ConfigError, match="url"):
        Workflow().end()


async def test_a_context_manager_needs_to_know_the_coordinator() -> None:
    with pytest.raises(ConfigError, match="url"):
        async with Workflow():
            pass


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "ftp://host", "http://"])
def test_a_url_must_be_one(url: str) -> None:
    with pytest.raises(ConfigError, match="url="):
        CoordinatorClient(url)


def test_an_unreachable_coordinator_is_named() -> None:
    # Port 9 (discard) on loopback is closed; the connection is refused at once.
    with pytest.raises(WorkerUnavailableError, match=r"http://127\.0\.0\.1:9/workers"):
        CoordinatorClient("http://127.0.0.1:9").workers()


def test_importing_the_client_loads_no_engine() -> None:
    code = (
        "import sys, hexgen_sglang.client as c; c.Workflow().tag('a');"
        "print([m for m in ('torch', 'sglang', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_export_is_an_attribute_error() -> None:
    import hexgen_sglang.client as client

    with pytest.raises(AttributeError, match="Nothing"):
        client.Nothing  # noqa: B018
