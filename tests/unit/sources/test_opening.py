"""Sources as the settings have them."""

from pathlib import Path

import pytest
from fastflow.pipelines.code import MAX_CODE_BYTES
from fastflow.pipelines.discovery import PipelineState
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.mirror import Mirror
from fastflow_controlplane.sources.opening import copy_of, open_sources

from tests.origins import Origin
from tests.unit.sources.conftest import Runs, make


@pytest.mark.parametrize(("limit", "refused"), [("1k", {"git", "plain"}), ("2k", set())])
async def test_code_above_the_limit_is_refused_whatever_it_lies_in(
    origin: Origin, root: Path, data_dir: Path, limit: str, refused: set[str]
) -> None:
    commit = origin.push({"git/main.py": "", "git/data": bytes(1500)})
    (make(root / "plain") / "data").write_bytes(bytes(1500))
    settings = ControlPlaneSettings(
        sources=[{"name": "one", "url": origin.url}, {"name": "two", "folder": str(root)}], code_limit=limit
    )
    fetched = Mirror(copy_of(data_dir, "one"))
    fetched.repository.remotes.create_anonymous(origin.url).fetch(["+refs/heads/*:refs/remotes/origin/*"])
    fetched.use(commit)
    sources = open_sources(settings.all_sources, data_dir, settings.default_limits, settings.max_code_bytes)
    catalog = Catalog(sources, data_dir, set, Runs().code, ManualClock())
    await catalog.refresh()
    found = {view.name: view.state for view in catalog.list()}
    assert found.keys() == {"git", "plain"}
    assert {name for name, state in found.items() if state is PipelineState.INVALID} == refused
    for name in found.keys() - refused:
        assert (await catalog.snapshot(name)).bundle_size > 1500
    await catalog.close()


def test_the_limit_is_256_mib_where_nothing_else_is_set() -> None:
    assert ControlPlaneSettings().max_code_bytes == MAX_CODE_BYTES == 256 * 1024**2
