"""Evidence to judge."""

import shutil
from pathlib import Path

import pytest

from tests.unit.chaos.aftermath import Aftermath


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nobody tampers with."""
    return Aftermath.write(tmp_path_factory.mktemp("aftermath") / "folder").folder


@pytest.fixture
def aftermath(written: Path, tmp_path: Path) -> Aftermath:
    """Evidence in which all is well."""
    return Aftermath(Path(shutil.copytree(written, tmp_path / "folder")))
