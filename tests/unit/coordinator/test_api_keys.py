"""API keys: made, kept hashed, recognised, read again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hexgen_sglang.coordinator.api_keys import (
    KeyRing,
    Role,
    append_key,
    load_keys,
    make_key,
)
from hexgen_sglang.core.errors import ConfigError


def add(path: Path, tenant: str = "acme", *roles: Role) -> str:
    key, row = make_key(tenant, roles or (Role.CLIENT,))
    append_key(path, row)
    return key


def test_each_key_finds_its_own_row_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keys = [add(path, f"t{number}") for number in range(20)]
    ring = KeyRing(path)
    assert [ring.find(key).tenant for key in keys] == [f"t{n}" for n in range(20)]  # type: ignore[union-attr]
    first, second = keys[:2]
    swapped = first[:24] + second[24:]  # a known id with the secret of another key
    flipped = first[:-1] + ("A" if first[-1] != "A" else "B")
    unknown, _ = make_key("t0", (Role.CLIENT,))
    for wrong in (swapped, flipped, unknown, "", first[:-1], first + "=", "hexgen_", first.upper()):
        assert ring.find(wrong) is None


def test_the_file_holds_no_key_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    key = add(path, "acme", Role.CLIENT, Role.OPERATOR)
    assert key.rpartition("_")[2] not in path.read_text()
    assert key[24:] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    [row] = load_keys(path).values()
    assert (row.tenant, row.roles) == ("acme", (Role.CLIENT, Role.OPERATOR))


def test_one_secret_has_another_hash_in_each_row() -> None:
    assert len({make_key("acme", (Role.CLIENT,))[1].hash for _ in range(10)}) == 10


@pytest.mark.parametrize("tenant", ["", "a/b", "x" * 65, "a b", 'a"b', "a\n"])
def test_names_that_could_be_taken_for_another_tenant_are_refused(tenant: str) -> None:
    with pytest.raises(ConfigError, match="tenant"):
        make_key(tenant, (Role.CLIENT,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "keys"),
        ("keys = []", "length >= 1"),
        ("[[keys]", "keys.toml"),
        ("twice", "every id must be there once"),
        ("colour", "unknown field `colour`"),
        ("role", "Invalid enum value 'admin'"),
    ],
)
def test_a_wrong_file_is_refused_whole(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    add(path)
    good = path.read_text()
    made = {
        "twice": good + good,
        "colour": good + 'colour = "green"\n',
        "role": good.replace('"client"', '"admin"'),
    }
    path.write_text(made.get(text, text))
    with pytest.raises(ConfigError, match=said):
        KeyRing(path)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    add(path)
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="mode 0620 lets others write"):
        KeyRing(path)
    with pytest.raises(ConfigError, match="lets others write"):
        add(path)


def test_changes_of_the_file_count_and_mistakes_in_it_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    old = add(path, "old")
    ring = KeyRing(path)
    new = add(path, "new")
    assert ring.find(new) is None
    ring.reload_if_changed()
    assert ring.find(old) is not None
    assert ring.find(new) is not None

    path.write_text("[[keys")
    ring.reload_if_changed()
    assert ring.is_stale
    assert ring.find(new) is not None

    replacement = tmp_path / "other.toml"
    add(replacement, "third")
    os.replace(replacement, path)
    ring.reload_if_changed()
    assert not ring.is_stale
    assert (ring.find(old), ring.find(new)) == (None, None)

    path.unlink()
    ring.reload_if_changed()
    assert ring.is_stale
    assert len(ring) == 1
