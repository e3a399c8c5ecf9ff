"""Names that are no text: each is told, in a form that can be sent and stored, and hides no other pipeline."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pygit2
import pytest
from fastflow_controlplane.api.translate import pipeline_message
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.model import Changes
from pygit2.enums import FileMode, ObjectType

from tests.unit.sources.conftest import Followed

LATIN = os.fsdecode(b"caf\xe9")
SHOWN = "caf\\udce9"

METADATA = json.dumps({"cpu_hard_limit": 0.5})


def push(followed: Followed, files: Mapping[str, str]) -> None:
    """Pushes files whose names are bytes of any kind, which Git takes."""
    followed.origin.push_tree(_tree(followed.origin.repository, files))


def _tree(repository: pygit2.Repository, files: Mapping[str, str]) -> pygit2.Oid:
    items: dict[str, tuple[FileMode, pygit2.Oid]] = {}
    for top in {path.partition("/")[0] for path in files}:
        if top in files:
            items[top] = (FileMode.BLOB, repository.create_blob(files[top].encode()))
        else:
            below = {path.partition("/")[2]: text for path, text in files.items() if path.startswith(f"{top}/")}
            items[top] = (FileMode.TREE, _tree(repository, below))
    raw = (f"{mode:o} ".encode() + os.fsencode(name) + b"\0" + oid.raw for name, (mode, oid) in sorted(items.items()))
    return repository.write(ObjectType.TREE, b"".join(raw))


def problems_as_sent(catalog: Catalog, name: str) -> list[tuple[str, str]]:
    """The problems of a pipeline, and of no other, after all pipelines were sent; by file."""
    sent = [pipeline_message(view) for view in catalog.list()]
    assert all(message.SerializeToString() for message in sent)
    (message,) = [message for message in sent if message.name == name]
    return [(problem.file, problem.message) for problem in message.problems]


@pytest.mark.parametrize("file", [f"{LATIN}.json", f"deep/{LATIN}.txt", f"{LATIN}/x"])
async def test_a_file_whose_name_is_no_text_is_told(followed: Followed, file: str) -> None:
    push(followed, {"p/main.py": "", f"p/{file}": METADATA, "other/main.py": ""})
    assert await followed.sync() == Changes(added=("other", "p"), invalid=("p",))
    told = problems_as_sent(followed.catalog, "p")
    assert (file.replace(LATIN, SHOWN).removesuffix("/x"), "the name is not UTF-8; rename it") in told
    assert (await followed.catalog.snapshot("other")).pipeline == "other"


async def test_metadata_named_after_a_folder_whose_name_is_no_text_is_told(followed: Followed) -> None:
    push(followed, {f"{LATIN}/main.py": "", f"{LATIN}/{LATIN}.json": METADATA, f"{LATIN}/pipeline.json": METADATA})
    assert (await followed.sync()).added == (SHOWN,)
    told = problems_as_sent(followed.catalog, SHOWN)
    assert ("", "the folder's name holds characters that can not be shown; rename it") in told


async def test_two_folders_of_one_name_that_is_no_text_are_told(followed: Followed) -> None:
    push(followed, {f"g1/{LATIN}/main.py": "", f"g2/{LATIN}/main.py": "", "other/main.py": ""})
    assert (await followed.sync()).added == (SHOWN, "other")
    ((_, message),) = problems_as_sent(followed.catalog, SHOWN)
    assert message == f'the name "{SHOWN}" stands for 2 folders: g1/{SHOWN}, g2/{SHOWN}; rename all but one'


async def test_a_name_that_is_shown_like_another_one_does_not_hide_it(followed: Followed) -> None:
    push(followed, {f"{LATIN}/main.py": "", f"g/{SHOWN}/main.py": ""})
    assert (await followed.sync()).added == (SHOWN,)
    ((_, message),) = problems_as_sent(followed.catalog, SHOWN)
    assert "stands for 2 folders" in message


async def test_folders_on_a_disk_are_told_alike(root: Path, catalog: Catalog) -> None:
    for folder in (f"g1/{LATIN}", f"g2/{LATIN}", "p"):
        (root / folder).mkdir(parents=True)
        (root / folder / "main.py").touch()
    (root / "p" / f"{LATIN}.json").write_text(METADATA)
    await catalog.refresh()
    assert [view.name for view in catalog.list()] == [SHOWN, "p"]
    assert "stands for 2 folders" in problems_as_sent(catalog, SHOWN)[0][1]
    assert (f"{SHOWN}.json", "the name is not UTF-8; rename it") in problems_as_sent(catalog, "p")
