"""`hexgen-sglang keys`, as it is called."""

from __future__ import annotations

import pytest

from hexgen_sglang.cli.main import main
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
