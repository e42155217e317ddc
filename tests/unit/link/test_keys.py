"""Key folders: made once, private, and refused when anything is off."""

from __future__ import annotations

import shutil
import stat

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.transport.zmq_link import (
    load_coordinator_keys,
    load_worker_keys,
    make_keys,
)


@pytest.fixture
def folder(tmp_path):
    make_keys(tmp_path / "deep" / "keys")
    return tmp_path / "deep" / "keys"


def test_both_sides_get_matching_keys(folder):
    worker, coordinator = load_worker_keys(folder), load_coordinator_keys(folder)
    assert worker.coordinator_public == coordinator.own.public
    assert coordinator.allowed == {worker.own.public}
    assert len({worker.own.secret, worker.own.public, *vars_of(coordinator.own)}) == 4


def vars_of(pair):
    return pair.public, pair.secret


def test_each_side_needs_only_its_own_files(folder, tmp_path):
    worker_side, coordinator_side = tmp_path / "worker", tmp_path / "coordinator"
    worker_side.mkdir()
    for name in ("worker.secret", "worker.public", "coordinator.public"):
        shutil.copy(folder / name, worker_side)
    shutil.copytree(folder, coordinator_side)
    (coordinator_side / "worker.secret").unlink()
    assert load_worker_keys(worker_side) == load_worker_keys(folder)
    assert load_coordinator_keys(coordinator_side) == load_coordinator_keys(folder)


def test_every_file_and_folder_is_private(folder):
    for path in [folder, *folder.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_secrets_do_not_show_in_logs(folder):
    for keys in (load_worker_keys(folder), load_coordinator_keys(folder)):
        assert keys.own.secret.decode() not in repr(keys)


def test_keys_are_never_overwritten(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="never overwritten"):
        make_keys(folder)
    (folder / "coordinator.secret").unlink()
    with pytest.raises(ConfigError, match=r"worker\.secret"):
        make_keys(folder)
    assert not (folder / "coordinator.secret").exists()
    assert all(path.read_bytes() == data for path, data in before.items() if path.exists())


def test_more_workers_can_be_allowed_and_one_can_be_shut_out(folder, tmp_path):
    make_keys(tmp_path / "second")
    second = load_worker_keys(tmp_path / "second").own.public
    shutil.copy(tmp_path / "second" / "worker.public", folder / "allowed" / "second.public")
    assert load_coordinator_keys(folder).allowed == {load_worker_keys(folder).own.public, second}
    (folder / "allowed" / "worker.public").unlink()
    assert load_coordinator_keys(folder).allowed == {second}


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 39, b"x" * 41, b'"' * 40, b"\xff" * 40])
def test_a_file_that_is_no_key_is_named(folder, content):
    (folder / "coordinator.public").write_bytes(content)
    with pytest.raises(ConfigError, match=r"coordinator\.public: must hold one key of 40 Z85"):
        load_worker_keys(folder)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_secret_that_others_can_read_is_refused(folder, mode):
    (folder / "worker.secret").chmod(mode)
    with pytest.raises(ConfigError, match=rf"worker\.secret: mode {mode:04o}.*use 0600"):
        load_worker_keys(folder)


def test_missing_files_and_an_empty_allowed_folder_are_named(folder):
    (folder / "allowed" / "worker.public").unlink()
    with pytest.raises(ConfigError, match="allowed"):
        load_coordinator_keys(folder)
    (folder / "worker.public").unlink()
    with pytest.raises(ConfigError, match=r"worker\.public: No such file"):
        load_worker_keys(folder)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="key folder"):
        make_keys(tmp_path / "file" / "keys")
