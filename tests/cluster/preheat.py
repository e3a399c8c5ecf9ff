"""What must hold of environments prepared ahead of runs with every runtime: inherit, and give a fixture `cluster`."""

import json
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.slots import tiny_wheel

PREPARE_SECONDS = 60.0


class Preheating:
    """Packages are there before the first run, and a mistake in them is seen before it."""

    def test_a_cold_package_set_is_prepared_at_the_sync_and_the_first_run_prepares_nothing(
        self, cluster: Cluster
    ) -> None:
        add_pipeline(cluster, "fresh", "alpha")
        environment = wait_for_environment(cluster, "fresh", "READY")
        assert f"alpha @ file:///fastflow/code/{wheel_name('alpha')}" in environment["packages"]
        before = preparations(cluster)
        shown = cluster.finish(cluster.run("fresh"))
        assert shown["state"] == "RUN_STATE_SUCCEEDED", cluster.log(shown["id"])
        assert cluster.log(shown["id"]).endswith(b"alpha\n")
        assert preparations(cluster) == before

    def test_a_broken_requirement_is_seen_before_the_first_run_and_mended_at_once(self, cluster: Cluster) -> None:
        folder = add_pipeline(cluster, "broken", "alpha")
        (folder / wheel_name("alpha")).write_bytes(b"no wheel")
        environment = wait_for_environment(cluster, "broken", "FAILED")
        assert wheel_name("alpha") in environment["message"]
        text = cluster.ffctl("pipelines", "show", "broken").text
        assert "FAILED" in text
        assert "Mend requirements.txt" in text
        assert listed(cluster, "broken")["environment_counts"]["failed"] == 1
        assert "packages can not be prepared: ffctl pipelines show broken" in cluster.ffctl("pipelines", "list").text
        assert json.loads(cluster.ffctl("runs", "list", "-o", "json").stdout)["runs"] == []
        (folder / wheel_name("alpha")).write_bytes(tiny_wheel("alpha", "NAME = 'alpha'\n")[1])
        wait_for_environment(cluster, "broken", "READY")
        assert listed(cluster, "broken")["environment_counts"] == {
            "waiting": 0,
            "preparing": 0,
            "ready": 1,
            "failed": 0,
        }

    def test_a_script_header_is_prepared_too_and_changed_code_is_not_prepared_again(self, cluster: Cluster) -> None:
        header = "# /// script\n# dependencies = []\n# ///\n"
        folder = cluster.add_pipeline("script", f"{header}print('first')\n")
        wait_for_environment(cluster, "script", "READY")
        before = preparations(cluster)
        main = (folder / "main.py").read_text()
        (folder / "main.py").write_text(main + "print('changed')\n")
        shown = cluster.finish(cluster.run("script"))
        assert cluster.log(shown["id"]) == b"first\nchanged\n"
        wait_for_environment(cluster, "script", "READY")
        assert preparations(cluster) == before

    def test_a_script_header_that_asks_for_another_python_is_told_of_before_the_first_run(
        self, cluster: Cluster
    ) -> None:
        header = '# /// script\n# requires-python = ">=99"\n# ///\n'
        cluster.add_pipeline("ahead_of_its_time", f"{header}print('runs')\n")
        message = wait_for_environment(cluster, "ahead_of_its_time", "READY")["message"]
        assert message.startswith('the header of main.py asks for Python ">=99", but runs get 3.')
        assert '">=99"' in cluster.ffctl("pipelines", "show", "ahead_of_its_time").text
        shown = cluster.finish(cluster.run("ahead_of_its_time"))
        assert shown["state"] == "RUN_STATE_SUCCEEDED"
        log = cluster.log(shown["id"])
        assert b"incompatible with the script's Python requirement" in log
        assert log.endswith(b"runs\n")

    def test_runs_that_need_the_same_new_environment_and_its_preparing_ahead_are_one_preparation(
        self, cluster: Cluster
    ) -> None:
        wait_for_environment(cluster, add_pipeline(cluster, "warm", "alpha").name, "READY")
        before = preparations(cluster)
        add_pipeline(cluster, "shared", "gamma")
        runs = [cluster.run("shared") for _ in range(3)]
        assert [cluster.finish(run)["state"] for run in runs] == ["RUN_STATE_SUCCEEDED"] * 3
        wait_for_environment(cluster, "shared", "READY")
        assert preparations(cluster) == before + 1

    def test_what_was_prepared_is_known_again_after_either_side_was_restarted(self, cluster: Cluster) -> None:
        add_pipeline(cluster, "kept", "alpha")
        first = wait_for_environment(cluster, "kept", "READY")
        before = preparations(cluster)
        for program in (cluster.agent, cluster.controlplane):
            program.stop()
            program.start()
            again = wait_for_environment(cluster, "kept", "READY")
            assert (again["prepare_time"], again["duration"]) == (first["prepare_time"], first["duration"])
        assert preparations(cluster) == before


def add_pipeline(cluster: Cluster, name: str, package: str) -> Path:
    """A pipeline that prints the name of a package of its own, which lies in its folder as a wheel."""
    folder = cluster.pipelines / f".{name}"
    folder.mkdir()
    file, content = tiny_wheel(package, f"NAME = {package!r}\n")
    (folder / file).write_bytes(content)
    (folder / "requirements.txt").write_text(f"./{file}\n")
    (folder / "main.py").write_text(f"import {package}\nprint({package}.NAME)\n")
    # Whole from the first look on.
    return folder.rename(cluster.pipelines / name)


def wheel_name(package: str) -> str:
    """The file name of a package's wheel."""
    return tiny_wheel(package, "")[0]


def environment_of(cluster: Cluster, pipeline: str) -> dict[str, Any]:
    """How far a pipeline's packages are on the one agent; {} while it is not known."""
    done = cluster.ffctl("pipelines", "show", pipeline, "-o", "json")
    environments = json.loads(done.stdout).get("environments", []) if done.exit_code == 0 else []
    return dict(environments[0]) if environments else {}


def listed(cluster: Cluster, pipeline: str) -> dict[str, Any]:
    """A pipeline as the list of all has it."""
    (found,) = (
        each
        for each in json.loads(cluster.ffctl("pipelines", "list", "-o", "json").stdout)["pipelines"]
        if each["name"] == pipeline
    )
    return dict(found)


def wait_for_environment(cluster: Cluster, pipeline: str, state: str) -> dict[str, Any]:
    """Waits until a pipeline's packages are in `state` ("READY") on the one agent."""

    def seen() -> dict[str, Any] | None:
        found = environment_of(cluster, pipeline)
        return found if found.get("state") == f"ENVIRONMENT_STATE_{state}" else None

    return cluster.until(seen, f"the packages of {pipeline} to be {state}")


def preparations(cluster: Cluster) -> int:
    """How often the agent had uv prepare an environment."""
    return cluster.agent.log.read_text().count('"preparing an environment"')
