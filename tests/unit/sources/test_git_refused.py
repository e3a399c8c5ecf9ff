"""Repositories that hold what no run can use: each is told by name, and the rest goes on."""

import pygit2
import pytest
from fastflow.pipelines.discovery import PipelineState
from fastflow_controlplane.errors import InvalidArgument
from fastflow_controlplane.sources.model import Changes
from pygit2.enums import FileMode

from tests.unit.sources.conftest import Followed

LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


async def test_what_can_not_travel_is_named(followed: Followed) -> None:
    other = "1" * 40
    followed.origin.push(
        {
            "link/main.py": "",
            "link/out": (FileMode.LINK, "../secret"),
            "inner/main.py": "",
            "inner/real": "x",
            "inner/fine": (FileMode.LINK, "real"),
            "sub/main.py": "",
            "sub/library": (FileMode.COMMIT, other),
            "module": (FileMode.COMMIT, other),
        }
    )
    assert (await followed.sync()).invalid == ("link", "sub")
    assert "symbolic link to '../secret', which leaves the folder" in followed.problems("link")[0]
    assert "library: is a Git submodule, whose files are in another repository" in followed.problems("sub")[0]
    assert followed.catalog.get("inner").state is PipelineState.READY
    assert any(problem.startswith("module: is a Git submodule") for problem in followed.catalog.problems("git"))
    with pytest.raises(InvalidArgument, match="Git submodule"):
        await followed.catalog.snapshot("sub")


async def test_lfs_pointers_are_warned_about_and_refused_where_fastflow_reads_them(followed: Followed) -> None:
    followed.origin.push(
        {
            "data/main.py": "",
            "data/model.bin": LFS_POINTER,
            "meta/main.py": "",
            "meta/pipeline.json": LFS_POINTER,
            "code/main.py": LFS_POINTER,
        }
    )
    assert (await followed.sync()).invalid == ("code", "meta")
    assert followed.catalog.get("data").state is PipelineState.READY
    assert followed.problems("data") == [
        "model.bin: is a Git LFS pointer: the file itself is not in the repository, and a run finds the pointer; store "
        "it without LFS, or let main.py fetch it"
    ]
    assert "git lfs untrack" in followed.problems("meta")[0]
    assert len(followed.problems("meta")) == 1


async def test_a_file_of_300_mib_is_refused_by_name_and_the_version_before_it_can_be_run(followed: Followed) -> None:
    good = followed.origin.push({"large/main.py": "", "small/main.py": ""})
    await followed.sync()
    followed.origin.push({"large/data/all.bin": bytes(300 * 1024**2)})
    assert (await followed.sync()).invalid == ("large",)
    assert (
        "the code has more than 256 MiB (data/all.bin alone has 300 MiB); move data elsewhere"
        in (followed.problems("large")[0])
    )
    with pytest.raises(InvalidArgument, match="more than 256 MiB"):
        await followed.catalog.snapshot("large")
    assert (await followed.catalog.snapshot("large", good)).commit == good
    assert (await followed.catalog.snapshot("small")).pipeline == "small"


async def test_a_repository_of_10_000_files_is_read_whole(followed: Followed) -> None:
    files = {f"p{number % 10}/data/{number}.txt": str(number) for number in range(10_000)}
    followed.origin.push({**files, **{f"p{number}/main.py": "" for number in range(10)}})
    assert len((await followed.sync()).added) == 10
    assert (await followed.catalog.snapshot("p3")).bundle_size > 1000


async def test_two_folders_of_one_name_refuse_to_run_until_one_is_renamed(followed: Followed) -> None:
    followed.origin.push({"x/p/main.py": "1", "y/p/main.py": "2"})
    assert (await followed.sync()).invalid == ("p",)
    with pytest.raises(InvalidArgument, match="stands for 2 folders: x/p, y/p"):
        await followed.catalog.snapshot("p")
    followed.origin.push({"y/p/main.py": None, "y/q/main.py": "2"})
    assert await followed.sync() == Changes(added=("q",), changed=("p",))
    assert (await followed.catalog.snapshot("p")).pipeline == "p"


async def test_names_with_spaces_and_other_scripts_are_pipelines(followed: Followed) -> None:
    followed.origin.push({"täglicher Bericht/main.py": "", "報告/main.py": "", "bad\x07/main.py": ""})
    assert (await followed.sync()).invalid == ("bad\\x07",)
    assert (await followed.catalog.snapshot("täglicher Bericht")).pipeline == "täglicher Bericht"
    assert (await followed.catalog.snapshot("報告")).pipeline == "報告"


def tree_of(repository: pygit2.Repository, *items: tuple[FileMode, str, pygit2.Oid]) -> pygit2.Oid:
    """A tree as it can be made by hand, unsorted and unchecked."""
    raw = (f"{mode:o} {name}".encode() + b"\0" + oid.raw for mode, name, oid in items)
    return repository.write(pygit2.enums.ObjectType.TREE, b"".join(raw))


async def test_a_few_objects_that_stand_for_millions_of_folders_are_refused_at_once(followed: Followed) -> None:
    repository = followed.origin.repository
    folder = tree_of(repository)
    for _ in range(20):
        folder = tree_of(repository, *((FileMode.TREE, str(number), folder) for number in range(10)))
    main = repository.create_blob(b"")
    bomb = tree_of(repository, (FileMode.TREE, "deep", folder), (FileMode.BLOB, "main.py", main))
    fine = tree_of(repository, (FileMode.BLOB, "main.py", main))
    root = tree_of(repository, (FileMode.TREE, "bomb", bomb), (FileMode.TREE, "fine", fine))
    followed.origin.push_tree(root)
    assert (await followed.sync()).invalid == ("bomb",)
    assert followed.problems("bomb") == ["the code has more than 20000 folders; move data elsewhere"]
    assert (await followed.catalog.snapshot("fine")).pipeline == "fine"


async def test_a_link_to_a_path_that_no_system_can_follow_is_refused_at_once(followed: Followed) -> None:
    followed.origin.push({"a/main.py": "", "a/link": (FileMode.LINK, "a/" * 500_000), "b/main.py": ""})
    assert (await followed.sync()).invalid == ("a",)
    assert followed.problems("a") == [
        "link: is a symbolic link to a path of more than 4095 bytes, which Linux can not follow"
    ]


async def test_a_tree_with_names_that_no_file_can_have_is_refused(followed: Followed) -> None:
    repository = followed.origin.repository
    main = (FileMode.BLOB, "main.py", repository.create_blob(b""))
    evil = tree_of(repository, (FileMode.BLOB, "../x", main[2]), main)
    good = tree_of(repository, main)
    followed.origin.push_tree(tree_of(repository, (FileMode.TREE, "evil", evil), (FileMode.TREE, "good", good)))
    await followed.sync()
    assert followed.names() == ["good"]
    assert any("'../x', which no file can have" in problem for problem in followed.catalog.problems("git"))
