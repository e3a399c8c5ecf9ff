import multiprocessing
import shutil
from pathlib import Path

import pytest
from fastflow_agent.identity import (
    DataFolderInUse,
    DataFolderLock,
    Identity,
    Membership,
    load_membership,
    save_membership,
)


def test_an_agent_keeps_its_id_and_is_a_new_instance_each_time(tmp_path: Path) -> None:
    first, second = Identity.load(tmp_path), Identity.load(tmp_path)
    assert first.agent_id == second.agent_id
    assert first.instance_id != second.instance_id
    assert first.boot_id == second.boot_id != ""


def test_a_damaged_agent_id_is_an_error_and_not_a_new_agent(tmp_path: Path) -> None:
    (tmp_path / "agent-id").write_text("half an i")
    with pytest.raises(ValueError, match="agent-id"):
        Identity.load(tmp_path)


def _try_lock(folder: Path, answer: "multiprocessing.Queue[str]") -> None:
    try:
        DataFolderLock(folder)
        answer.put("")
    except DataFolderInUse as error:
        answer.put(str(error))


def test_one_data_folder_takes_one_agent(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answer: multiprocessing.Queue[str] = context.Queue()
    lock = DataFolderLock(tmp_path)
    other = context.Process(target=_try_lock, args=(tmp_path, answer))
    other.start()
    assert str(tmp_path) in answer.get(timeout=60)
    other.join()
    lock.release()
    DataFolderLock(tmp_path).release()
    answer.close()
    answer.join_thread()


def test_the_membership_outlives_the_process(tmp_path: Path) -> None:
    assert load_membership(tmp_path) == Membership()
    save_membership(tmp_path, Membership("cluster", 9))
    assert load_membership(tmp_path) == Membership("cluster", 9)


def test_an_agent_that_gets_a_new_id_is_no_member_of_a_cluster_yet(tmp_path: Path) -> None:
    Identity.load(tmp_path)
    save_membership(tmp_path, Membership("cluster", 9))
    (tmp_path / "agent-id").unlink()
    Identity.load(tmp_path)
    assert load_membership(tmp_path) == Membership()
    save_membership(tmp_path, Membership("cluster", 9))
    Identity.load(tmp_path)
    assert load_membership(tmp_path) == Membership("cluster", 9)


@pytest.mark.parametrize("replaced", [False, True])
def test_it_is_noticed_that_a_data_folder_is_lost_under_its_agent(tmp_path: Path, replaced: bool) -> None:
    folder = tmp_path / "agent"
    lock = DataFolderLock(folder)
    assert lock.stands()
    shutil.rmtree(folder)
    if replaced:
        DataFolderLock(folder).release()
    assert not lock.stands()
    lock.release()


def test_nobody_else_reaches_what_runs_leave_in_the_data_folder(tmp_path: Path) -> None:
    DataFolderLock(tmp_path / "agent").release()
    assert (tmp_path / "agent").stat().st_mode & 0o777 == 0o700
