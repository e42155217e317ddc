"""Whatever a configuration file holds: it is refused by name, or read, printed and read again."""

from __future__ import annotations

import tomllib
from math import inf, nan
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hexgen_sglang.coordinator.config import (
    CoordinatorConfig,
    CoordinatorFile,
    PeerConfig,
    WorkerConfig,
    as_toml,
    convert,
)
from hexgen_sglang.coordinator.limits import TenantLimits
from hexgen_sglang.core.errors import ConfigError

TEXTS = st.text(max_size=8) | st.sampled_from(
    ["tcp://127.0.0.1:5600", "tcp://0.0.0.0:5600", "http://h:1", "0.0.0.0", "late", "keys", "x"]
)
NUMBERS = st.sampled_from(
    [*(0, 1, 2, 20, 250, 1_000, 65_535, -1, 2**63, -(2**70)), *(0.0, 0.5, -1.5, 1e300, inf, nan)]
)
VALUES = st.one_of(
    st.sampled_from([None, True, False, [], {}, [[]], ["x"], {"x": 1}, {"x": {}}]), NUMBERS, TEXTS
)


def tables(kind: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of its fields with whatever, now and then one that it does not have."""
    names = st.sampled_from([field.name for field in msgspec.structs.fields(kind)] + ["unknown"])
    return st.dictionaries(names, VALUES, max_size=4)


WHOLE_FILES = st.fixed_dictionaries(
    {},
    optional={
        "coordinator": tables(CoordinatorConfig),
        "workers": st.lists(tables(WorkerConfig), max_size=2),
        "peers": st.lists(tables(PeerConfig), max_size=2),
        "limits": tables(TenantLimits),
        "tenants": st.dictionaries(TEXTS, tables(TenantLimits), max_size=2),
        "unknown": VALUES,
    },
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(raw=WHOLE_FILES)
def test_a_file_is_refused_by_name_or_survives_being_printed(raw: dict[str, Any]) -> None:
    try:
        file = convert(raw, CoordinatorFile, "fuzzed.toml")
    except ConfigError:
        return
    again = convert(tomllib.loads(as_toml(file)), CoordinatorFile, "printed.toml")
    assert again == file


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_field_at_a_time(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(msgspec.structs.fields(CoordinatorConfig)))
    raw, told = {"coordinator": {field.name: data.draw(VALUES)}}, ""
    try:
        file = convert(raw, CoordinatorFile, "fuzzed.toml")
    except ConfigError as error:
        told = str(error)
    if told:
        assert field.name.split("_")[0] in told
        return
    assert convert(tomllib.loads(as_toml(file)), CoordinatorFile, "printed.toml") == file
