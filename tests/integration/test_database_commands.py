"""`fastflow-controlplane db`, as an operator uses it."""

import subprocess
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.program import BIN
from tests.contract.databases import DATABASES, empty_database
from tests.postgres.server import PASSWORD


@pytest.mark.parametrize("kind", DATABASES)
def test_a_database_is_checked_and_copied_under_a_control_plane_and_restored_without_one(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    with (
        empty_database(kind, request, tmp_path) as url,
        Cluster(tmp_path / "cluster", "process", FASTFLOW_DATABASE_URL=url) as cluster,
    ):
        copy = str(tmp_path / "copy")

        def db(*words: str) -> tuple[int, str]:
            done = subprocess.run(
                [str(BIN / "fastflow-controlplane"), "db", *words],
                env=cluster.ffctl_environment() | cluster.controlplane.settings,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert PASSWORD not in done.stdout + done.stderr
            return done.returncode, done.stdout + done.stderr

        assert db("check")[0] == 1
        assert db("upgrade")[0] == 0
        assert PASSWORD not in db("check", "--print-config")[1]
        cluster.add_pipeline("hello", "print('hello')")
        cluster.start()
        before = cluster.finish(cluster.run("hello"))["id"]
        assert db("backup", copy)[0] == 0
        after = cluster.finish(cluster.run("hello"))["id"]
        code, told = db("check")
        assert (code, "2 runs, 2 attempts: no faults" in told) == (0, True), told
        code, told = db("restore", copy, "--force")
        assert (code, "another control plane" in told) == (1, True), told

        cluster.controlplane.stop()
        log = next((tmp_path / "cluster" / "controlplane" / "logs").glob(f"*/{before}/1.log"))
        log.rename(log.with_suffix(".away"))
        code, told = db("check")
        assert (code, before in told and "put back the folder logs" in told) == (1, True), told
        log.with_suffix(".away").rename(log)
        code, told = db("restore", copy)
        assert (code, "--force" in told) == (1, True), told
        assert db("restore", copy, "--force")[0] == 0
        cluster.controlplane.start()
        cluster.until(lambda: cluster.ffctl("runs", "show", before).exit_code == 0, "the restored run")
        assert cluster.ffctl("runs", "show", after).exit_code == 4
