"""Where local runs keep their caches and their code."""

from pathlib import Path

import pytest
from fastflow.pipelines.code import read_code
from fastflow.pipelines.folder import DiskFolder
from fastflow_agent.bundles import BundleFault
from fastflow_agent.local.folder import PackedCode, default_cache, take_folder


def test_each_run_works_in_the_first_folder_that_is_free(tmp_path: Path) -> None:
    first, first_lock = take_folder(tmp_path)
    second, second_lock = take_folder(tmp_path)
    first_lock.release()
    third, third_lock = take_folder(tmp_path)
    second_lock.release()
    third_lock.release()
    assert (first.name, second.name, third.name) == ("1", "2", "1")


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "fastflow" / "local"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_cache() == Path("/home/ada/.cache/fastflow/local")


async def test_code_is_as_an_agent_would_have_it_and_gone_in_the_end(tmp_path: Path) -> None:
    source = tmp_path / "etl"
    (source / "__pycache__").mkdir(parents=True)
    (source / "main.py").write_text("print(1)\n")
    (tmp_path / "code" / "left-by-a-killed-run").mkdir(parents=True)
    code = PackedCode.of(read_code(DiskFolder(source)), tmp_path / "code")
    path = await code.ensure(code.packed.digest, code.packed.size)
    assert [(entry.name, entry.stat().st_mode & 0o777) for entry in path.iterdir()] == [("main.py", 0o444)]
    assert list((tmp_path / "code").iterdir()) == [path]
    with pytest.raises(BundleFault):
        await code.ensure("sha256:" + "0" * 64, 1)
    code.remove()
    assert list((tmp_path / "code").iterdir()) == []
