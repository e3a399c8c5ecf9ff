"""Unpacked code on a worker's disk."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from fastflow.pipelines.bundle import digest_hex, pack
from fastflow.pipelines.code import ANY_SIZE, MAX_CODE_BYTES, read_code
from fastflow.pipelines.folder import DiskFolder
from fastflow_agent.bundle_store import BundleStore


def test_code_of_any_size_that_the_control_plane_allows_is_kept_and_whole(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    with (tmp_path / "code" / "data").open("wb") as file:
        file.truncate(MAX_CODE_BYTES + 1)
    with tempfile.TemporaryFile(dir=tmp_path) as archive:
        name = digest_hex(pack(read_code(DiskFolder(tmp_path / "code"), ANY_SIZE), archive).digest)
        store = BundleStore(tmp_path / "bundles")
        store.open()
        store.put(archive, name, datetime.now(UTC))
    restarted = BundleStore(tmp_path / "bundles")
    restarted.open()
    assert restarted.broken(name) == store.broken(name) == ""
    assert (restarted.path(name) / "data").stat().st_size == MAX_CODE_BYTES + 1
