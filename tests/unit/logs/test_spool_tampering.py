"""What the spool makes of a log that somebody, or a power cut, shortened, emptied or replaced. On real files."""

import os
from pathlib import Path

import pytest
from fastflow_agent.logs.holes import BLOCK
from fastflow_agent.logs.lost import LostBytes
from fastflow_agent.logs.spool import PUNCH_BYTES, Spool, losses_at

from tests.unit.logs.spools import kinds, on_disk, open_spool, write

MIB = 1024 * 1024
SECRET = b"hunter2-hunter2"


def emptied_spool(path: Path) -> Spool:
    """A spool whose log of 1000 bytes was read, and then emptied."""
    spool = open_spool(path)
    write(path, b"x" * 1000)
    spool.read(0, 1000)
    os.truncate(path, 0)
    spool.care()
    return spool


class TestTampering:
    def test_a_log_that_shrinks_ends_where_it_was_read(self, path: Path) -> None:
        spool = open_spool(path)
        write(path, b"x" * 1000)
        assert spool.read(0, 600) == b"x" * 600
        spool.acknowledged(200)
        os.truncate(path, 400)
        assert spool.wants_care(spool.size())
        spool.care()
        write(path, b"y" * 5000)
        assert kinds(spool.take_losses()) == [("TAMPERED", 600, None)]
        # What was sent, but not acknowledged, is there again as far as it is still in the file.
        assert spool.read(200, 1000) == b"x" * 200
        lost = spool.read(400, 1000)
        assert isinstance(lost, LostBytes)
        assert (lost.kind, lost.end) == ("TAMPERED", 600)
        assert spool.read(600, 1000) is None
        assert spool.finish() == 600

    @pytest.mark.parametrize("restarted", [False, True])
    def test_what_had_arrived_before_a_log_was_emptied_is_no_loss_though_nobody_had_heard_so(
        self, path: Path, restarted: bool
    ) -> None:
        spool = emptied_spool(path)
        if restarted:
            spool.close()
            spool = open_spool(path, 1000)
        spool.acknowledged(1000)
        # What followed nobody knows; what was there has arrived.
        assert kinds(spool.take_losses()) == [("TAMPERED", 1000, None)]
        assert kinds(losses_at(path, 0, durable=1000)) == [("TAMPERED", 1000, None)]
        assert kinds(losses_at(path, 0, durable=400)) == [("TAMPERED", 400, 600), ("TAMPERED", 1000, None)]

    @pytest.mark.parametrize("restarted", [False, True])
    def test_what_was_asked_for_again_after_a_log_was_emptied_is_a_loss_from_there(
        self, path: Path, restarted: bool
    ) -> None:
        spool = emptied_spool(path)
        # Only then it is heard how much of it had arrived.
        assert isinstance(spool.read(600, 1000), LostBytes)
        if restarted:
            spool.close()
            spool = open_spool(path, 1000)
        spool.acknowledged(1000)
        losses = [("TAMPERED", 600, 400), ("TAMPERED", 1000, None)]
        assert sorted(kinds(spool.take_losses())) == losses
        assert kinds(losses_at(path, 0, durable=1000)) == losses

    def test_a_log_that_is_shorter_than_what_has_arrived_was_tampered_with(self, path: Path) -> None:
        write(path, b"x" * 300)
        spool = open_spool(path, 100)
        spool.acknowledged(1000)
        assert kinds(spool.take_losses()) == [("TAMPERED", 1000, None)]
        assert spool.finish() == 1000

    def test_it_ends_there_after_a_restart_as_well(self, path: Path) -> None:
        spool = open_spool(path)
        write(path, b"x" * 1000)
        spool.read(0, 600)
        os.truncate(path, 0)
        spool.care()
        write(path, b"y" * 5000)
        again = open_spool(path, 100)
        assert kinds(again.take_losses()) == [("TAMPERED", 600, None)]
        assert again.finish() == 600
        assert isinstance(again.read(100, 10), LostBytes)

    def test_a_log_that_shrank_while_nobody_looked_ends_where_the_control_plane_is(self, path: Path) -> None:
        write(path, b"short")
        spool = open_spool(path, 100)
        assert kinds(spool.take_losses()) == [("TAMPERED", 100, None)]
        assert spool.finish() == 100

    @pytest.mark.parametrize("found", ["shorter", "missing"])
    def test_what_a_power_cut_took_from_the_disk_is_no_tampering(self, path: Path, found: str) -> None:
        write(path, b"short")
        inode = open_spool(path).inode
        if found == "missing":
            path.unlink()
        for _ in range(2):
            spool = Spool.open(path, start_offset=100, spool_quota=MIB, inode=inode, host_went_down=True)
            (loss,) = spool.take_losses()
            assert (loss.kind, loss.offset, loss.bytes) == ("DISK", 100, None)
            assert "the worker host went down" in loss.message
            assert spool.finish() == 100
            spool.close()

    @pytest.mark.parametrize("length", [None, 9])
    def test_what_a_power_cut_took_from_the_end_of_a_log_is_a_loss_there(self, path: Path, length: int | None) -> None:
        write(path, b"whole")
        for delivered in (3, 5):
            spool = Spool.open(path, start_offset=delivered, spool_quota=MIB, host_went_down=True, length=length)
            assert spool.read(delivered, 10) == (b"whole"[delivered:] or None)
            (loss,) = spool.take_losses()
            assert (loss.kind, loss.offset, loss.bytes) == ("DISK", 5, None)
            assert "the worker host went down" in loss.message
            assert (spool.finish(), losses_at(path, 0)) == (5, [loss])
            spool.close()

    def test_a_log_that_is_as_long_as_when_its_program_ended_lost_nothing_to_a_power_cut(self, path: Path) -> None:
        write(path, b"whole")
        spool = Spool.open(path, start_offset=3, spool_quota=MIB, host_went_down=True, length=5)
        assert (spool.take_losses(), spool.finish()) == ([], 5)

    @pytest.mark.parametrize("delivered", [0, 300, 700])
    @pytest.mark.parametrize(
        ("log", "end"),
        [
            (b"x" * 700 + b"\0" * 100, 700),
            (b"x" * 700 + b"\0" * 5000, 700),
            (b"x" * 1000 + b"\0" * 24 + b"y" * 500, 1000),
            (b"x" * 1024 + b"\0" * 1024 + b"y" * 500, 1024),
            (b"x" * 700 + b"\0" * 100 + b"y" * 500, 1300),
        ],
        ids=["end", "blocks at the end", "end of a block", "block", "a program's own zeros"],
    )
    def test_what_a_power_cut_left_of_a_log_as_zeros_is_no_output(
        self, path: Path, log: bytes, end: int, delivered: int
    ) -> None:
        write(path, log)
        for _ in range(2):
            spool = Spool.open(path, start_offset=delivered, spool_quota=MIB, host_went_down=True)
            assert spool.read(delivered, len(log)) == (log[delivered:end] or None)
            assert (spool.finish(), kinds(spool.take_losses())) == (end, [("DISK", end, None)])
            spool.close()

    def test_zeros_of_a_log_that_is_known_to_be_whole_are_output(self, path: Path) -> None:
        log = b"x" * 1000 + b"\0" * 1000
        write(path, log)
        spool = Spool.open(path, spool_quota=MIB, host_went_down=True, length=2000)
        assert (spool.read(0, 3000), spool.finish(), spool.take_losses()) == (log, 2000, [])

    def test_a_log_of_which_nothing_reached_the_disk_ends_where_it_was_delivered(self, path: Path) -> None:
        os.truncate(path, 100_000)
        spool = Spool.open(path, start_offset=5000, spool_quota=MIB, host_went_down=True)
        assert (spool.read(5000, 10), spool.finish()) == (None, 5000)
        assert kinds(spool.take_losses()) == [("DISK", 5000, None)]

    def test_what_was_dropped_before_a_power_cut_is_not_what_the_power_cut_took(self, path: Path) -> None:
        spool = open_spool(path, quota=64 * 1024)
        write(path, b"x" * 200_000)
        spool.care()
        (dropped,) = spool._lost.ranges
        spool.close()
        spool = Spool.open(path, spool_quota=64 * 1024, host_went_down=True)
        assert kinds(spool.take_losses()) == [("DISK", 200_000, None)]
        assert spool.read(dropped.end, 10) == b"x" * 10

    def test_a_power_cut_takes_nothing_behind_the_limit_of_a_log(self, path: Path) -> None:
        write(path, b"whole and more")
        spool = Spool.open(path, spool_quota=MIB, log_limit=5, host_went_down=True)
        assert (spool.finish(), kinds(spool.take_losses())) == (5, [("TRUNCATED", 5, None)])

    def test_another_file_in_the_logs_place_is_tampering_whatever_became_of_the_host(self, path: Path) -> None:
        write(path, b"the log")
        inode = open_spool(path).inode
        path.rename(path.with_name("aside"))
        path.write_bytes(b"another")
        spool = Spool.open(path, start_offset=3, spool_quota=MIB, inode=inode, host_went_down=True)
        assert kinds(spool.take_losses()) == [("TAMPERED", 3, None)]

    def test_tampering_found_before_the_host_went_down_stays_what_it_was(self, path: Path) -> None:
        spool = open_spool(path)
        write(path, b"x" * 100)
        spool.read(0, 100)
        os.truncate(path, 0)
        spool.care()
        again = Spool.open(path, start_offset=100, spool_quota=MIB, host_went_down=True)
        assert kinds(again.take_losses()) == [("TAMPERED", 100, None)]

    def test_what_is_written_after_tampering_does_not_fill_the_disk(self, path: Path) -> None:
        spool = open_spool(path)
        write(path, os.urandom(MIB))
        spool.read(0, MIB)
        os.truncate(path, 0)
        spool.care()
        for _ in range(4):
            write(path, os.urandom(PUNCH_BYTES))
            assert spool.wants_care(spool.size())
            spool.care()
        assert on_disk(path) <= 2 * BLOCK

    def test_a_link_in_the_logs_place_is_not_followed(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "precious").write_bytes(b"not a log")
        path.unlink()
        path.symlink_to(tmp_path / "precious")
        spool = open_spool(path)
        assert kinds(spool.take_losses()) == [("TAMPERED", 0, None)]
        assert spool.read(0, 100) is None
        assert spool.finish() == 0

    @pytest.mark.parametrize("replacement", ["file", "pipe", "folder", "nothing"])
    def test_whatever_stands_in_the_logs_place_is_not_taken_for_it(self, path: Path, replacement: str) -> None:
        write(path, b"the log")
        inode = open_spool(path).inode
        path.rename(path.with_name("aside"))
        if replacement == "file":
            path.write_bytes(b"another")
        elif replacement == "pipe":
            os.mkfifo(path)
        elif replacement == "folder":
            path.mkdir()
        spool = Spool.open(path, start_offset=3, spool_quota=MIB, inode=inode)
        assert kinds(spool.take_losses()) == [("TAMPERED", 3, None)]
        assert spool.finish() == 3
        assert spool.read(3, 100) is None

    def test_the_log_itself_is_taken_again(self, path: Path) -> None:
        write(path, b"the log")
        inode = open_spool(path).inode
        assert Spool.open(path, spool_quota=MIB, inode=inode).read(0, 100) == b"the log"
