"""Where a package came from, from what pip and uv leave of it (PEP 610)."""

import json
from typing import Any

import pytest
from fastflow_agent.uvcache.origins import LONGEST_ORIGIN, LONGEST_RECORD, is_of_commit, name_and_origin, told
from hypothesis import given
from hypothesis import strategies as st

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256 = "ab" * 32


def git(url: str, revision: str | None = COMMIT, **more: Any) -> str:
    info = {"vcs": "git", "commit_id": COMMIT} | ({"requested_revision": revision} if revision else {})
    return json.dumps({"url": url, "vcs_info": info, **more})


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("", "own==1.0"),
        ('{"url": "https://host/own-1.0.tar.gz", "archive_info": {}}', "own @ https://host/own-1.0.tar.gz"),
        (
            json.dumps({"url": "https://host/own.whl", "archive_info": {"hashes": {"sha256": SHA256, "md5": "0"}}}),
            f"own @ https://host/own.whl#sha256={SHA256}",
        ),
        ('{"url": "file:///fastflow/code/own.whl", "archive_info": {}}', "own @ file:///fastflow/code/own.whl"),
        ('{"url": "file:///fastflow/code", "dir_info": {"editable": true}}', "own @ file:///fastflow/code"),
        (git("https://host/own.git"), f"own @ git+https://host/own.git@{COMMIT}"),
        (
            git("https://host/own.git", subdirectory="python/own pkg"),
            f"own @ git+https://host/own.git@{COMMIT}#subdirectory=python/own%20pkg",
        ),
        (git("https://host/own.git", "feature/x"), "own @ git+https://host/own.git@feature/x"),
        (git("https://host/own.git", None), "own @ git+https://host/own.git"),
    ],
)
def test_a_package_is_told_by_its_version_or_by_where_it_came_from(record: str, expected: str) -> None:
    assert told("own==1.0", record) == expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:s3cret@host:8443/own.whl", "https://host:8443/own.whl"),
        ("https://s3cret@host/own.whl?token=s3cret#s3cret", "https://host/own.whl"),
        ("https://us@er:s3cret@host/own.whl", "https://host/own.whl"),
        ("ssh://git:s3cret@host/own.git", "ssh://git@host/own.git"),
        ("ssh://s3cret@host/own.git", "ssh://host/own.git"),
        ("https://git@host/own.git", "https://host/own.git"),
    ],
)
def test_no_login_is_told(url: str, shown: str) -> None:
    assert told("own==1.0", git(url)) == f"own @ git+{shown}@{COMMIT}"


@pytest.mark.parametrize(
    "record",
    [
        "no JSON",
        "[" * 4000,
        "[]",
        '"https://host/own.whl"',
        "{}",
        '{"url": 3}',
        '{"url": "relative/own.whl"}',
        '{"url": "git@host:own.git"}',
        '{"url": "https://[host/own.whl"}',
        json.dumps({"url": "https://host/own.whl\nother==1"}),
        json.dumps({"url": "https://host/own .whl"}),
        json.dumps({"url": "https://host/\u202egnp.whl"}),
        json.dumps({"url": "https://host/\x1b[31m"}),
        json.dumps({"url": "https://host/${HOME}"}),
        json.dumps({"url": "https://host/" + "x" * LONGEST_ORIGIN}),
        json.dumps({"url": "https://host/own.whl", "more": "x" * LONGEST_RECORD}),
        git("https://host/own.git", "main; other==1"),
        git("https://host/own.git", "\ud800"),
        git("https://host/own.git", subdirectory="\ud800"),
        git("https://host/own\ud800.git"),
    ],
)
def test_of_what_a_package_made_up_its_version_alone_is_told(record: str) -> None:
    assert told("own==1.0", record) == "own==1.0"


ANYTHING = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(["https://host/own", "git", "main", COMMIT, SHA256, "//["]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
RECORD = st.fixed_dictionaries(
    {},
    optional={
        "url": st.builds("".join, st.lists(st.sampled_from(["https://", "user:s3cret@", "host", "/own"]) | st.text()))
        | ANYTHING,
        "vcs_info": st.dictionaries(st.sampled_from(["vcs", "commit_id", "requested_revision"]), ANYTHING) | ANYTHING,
        "archive_info": st.fixed_dictionaries({"hashes": st.fixed_dictionaries({"sha256": ANYTHING}) | ANYTHING}),
        "subdirectory": ANYTHING,
    },
)


@given(RECORD.map(json.dumps) | st.text())
def test_whatever_a_package_made_up_it_is_told_in_one_line_of_bounded_size(record: str) -> None:
    package = told("own==1.0", record)
    assert package.isascii()
    assert package.isprintable()
    assert name_and_origin(package)[0] == "own"
    assert len(package) <= len("own @ ") + LONGEST_ORIGIN
    assert package.count(" ") in (0, 2)


@pytest.mark.parametrize("record", [3, None, {"url": "https://host/own.whl"}])
def test_a_record_that_is_no_text_is_none(record: object) -> None:
    assert told("own==1.0", record) == "own==1.0"


@pytest.mark.parametrize("package", ["own", "own==", "own @ https://host/own.whl", "own==1\nother==1", 3, None])
def test_what_is_no_package_is_not_told(package: object) -> None:
    assert told(package, git("https://host/own.git")) == ""


def test_parts_of_a_hash_or_subdirectory_that_are_none_are_left_out() -> None:
    record = {"url": "https://host/own.whl", "archive_info": {"hashes": {"sha256": "short"}}, "subdirectory": 3}
    assert told("own==1.0", json.dumps(record)) == "own @ https://host/own.whl"
    assert told("own==1.0", json.dumps(record | {"archive_info": {"hashes": 3}})) == "own @ https://host/own.whl"


def test_what_is_told_splits_into_name_and_origin() -> None:
    assert name_and_origin("own==1.0") == ("own", "1.0")
    assert name_and_origin("own @ https://host/a==b.whl") == ("own", "https://host/a==b.whl")
    assert name_and_origin("own") == ("own", "")


def test_only_a_whole_commit_is_one() -> None:
    assert is_of_commit(f"own @ git+https://host/own.git@{COMMIT}")
    assert is_of_commit(f"own @ git+ssh://git@host/own.git@{COMMIT}#subdirectory=python")
    for other in (
        "own==1.0",
        f"own @ https://host/own.git@{COMMIT}",
        f"own @ git+https://host/own.git@{COMMIT[:12]}",
        "own @ git+https://host/own.git@main",
        f"own @ git+https://host/own.git@{COMMIT}\n-r /etc/passwd",
        f"own @ git+https://host/${{HOME}}.git@{COMMIT}",
    ):
        assert not is_of_commit(other)
