"""How busy the machine was, from two readings of its clock ticks."""

from __future__ import annotations

from hexgen_sglang import __version__
from hexgen_sglang.bench import machine


def test_busy_share_is_the_difference_of_two_readings() -> None:
    assert machine.busy_frac((100, 400), (150, 600)) == 0.25
    assert machine.busy_frac((100, 400), (100, 400)) is None
    assert machine.busy_frac(None, (1, 2)) is None


def test_readings_of_this_machine_never_go_back() -> None:
    before = machine.cpu_ticks()
    sum(number * number for number in range(200_000))
    after = machine.cpu_ticks()
    if before is not None and after is not None:
        assert after[1] >= before[1]
        assert 0 <= before[0] <= before[1]
        share = machine.busy_frac(before, after)
        assert share is None or 0 <= share <= 1


def test_versions_name_ourselves_and_leave_out_what_is_absent() -> None:
    found = machine.versions()
    assert found["hexgen-sglang"] == __version__
    assert "numpy" in found
    assert all(found.values())
    assert machine.machine()["cores"] >= 1
