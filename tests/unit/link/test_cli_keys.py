"""`hexgen-sglang keys`, as it is called."""

from __future__ import annotations

import pytest

from hexgen_sglang.cli.main import main
from hexgen_sglang.coordinator.api_keys import KeyRing, Role
from hexgen_sglang.transport.zmq_link import load_coordinator_keys, load_worker_keys


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["hexgen-sglang", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_it_makes_a_folder_that_both_sides_can_load(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "keys", "--out", tmp_path / "keys") == 0
    assert load_coordinator_keys(tmp_path / "keys").allowed == {
        load_worker_keys(tmp_path / "keys").own.public
    }
    shown = capsys.readouterr().out
    assert "--hexgen-keys" in shown
    assert load_worker_keys(tmp_path / "keys").own.secret.decode() not in shown


def test_a_second_call_overwrites_nothing_and_fails_clearly(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "keys", "--out", tmp_path)
    before = load_worker_keys(tmp_path)
    assert run(monkeypatch, "keys", "--out", tmp_path) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert load_worker_keys(tmp_path) == before


def test_an_api_key_is_printed_once_and_only_its_hash_is_kept(monkeypatch, capsys, tmp_path):
    path = tmp_path / "api-keys.toml"
    arguments = ("keys", "api", "--tenant", "acme", "--file", path)
    assert run(monkeypatch, *arguments) == 0
    shown = capsys.readouterr()
    key = shown.out.strip()
    assert run(monkeypatch, *arguments, "--role", "operator", "--role", "client") == 0
    second = capsys.readouterr().out.strip()
    ring = KeyRing(path)
    assert ring.find(key).roles == (Role.CLIENT,)
    assert set(ring.find(second).roles) == {Role.CLIENT, Role.OPERATOR}
    assert key not in shown.err + path.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys",), "--out: needed"),
        (("keys", "api"), "--tenant: needed"),
        (("keys", "api", "--tenant", "a/b"), "tenant"),
        (("keys", "api", "--tenant", "a", "--out", "x"), "--out: only for link keys"),
        (("keys", "--out", "x", "--tenant", "a"), "only for `hexgen-sglang keys api`"),
    ],
)
def test_what_does_not_belong_together_is_refused(arguments, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
