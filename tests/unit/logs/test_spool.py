"""The spool: true offsets, the same bytes each time, and every loss a recorded fact. On real files."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fastflow_agent.logs.holes import BLOCK, punch
from fastflow_agent.logs.lost import Lost, LostBytes
from fastflow_agent.logs.redact import Masks
from fastflow_agent.logs.spool import PUNCH_BYTES, Spool

from tests.unit.logs.spools import kinds, on_disk, open_spool, read_all, write

MIB = 1024 * 1024
SECRET = b"hunter2-hunter2"


class TestReading:
    def test_bytes_come_as_they_were_written(self, path: Path) -> None:
        spool = open_spool(path)
        assert spool.read(0, 100) is None
        write(path, b"\xff\x00 first\n")
        assert spool.read(0, 100) == b"\xff\x00 first\n"
        assert spool.read(3, 4) == b"firs"
        assert spool.read(9, 100) is None
        write(path, b"second")
        assert spool.read(9, 100) == b"second"
        assert spool.finish() == 15

    @pytest.mark.parametrize("step", [1, 7, 100, 4096])
    def test_secrets_are_hidden_wherever_chunks_end(self, path: Path, step: int) -> None:
        output = (b"a line with hunter2-hunter2 in it, and hunter2-hunter2hunter2-hunter2\n" * 20) + b"hunter2-hunt"
        spool = open_spool(path, secrets=(SECRET,))
        write(path, output)
        spool.finish()
        assert read_all(spool, step=step) == output.replace(SECRET, b"*" * len(SECRET))

    def test_a_secret_that_arrives_in_pieces_is_hidden(self, path: Path) -> None:
        spool = open_spool(path, secrets=(SECRET,))
        shown = b""
        for byte in b"says: hunter2-hunter2, hunter2-no\n":
            write(path, bytes([byte]))
            shown += read_all(spool, len(shown))
        assert shown == b"says: ***************, hunter2-no\n"

    def test_only_what_may_become_a_secret_is_held_back(self, path: Path) -> None:
        spool = open_spool(path, secrets=(SECRET,))
        write(path, b"ready\n")
        assert spool.read(0, 100) == b"ready\n"
        write(path, b"hunter2-")
        assert spool.read(6, 100) is None
        assert spool.finish() == 14
        assert spool.read(6, 100) == b"hunter2-"

    def test_bytes_sent_again_are_alike_also_after_a_restart(self, path: Path) -> None:
        source = random.Random(7)
        output = b"".join(source.choice([b"x", b"hunter2-", b"hunter2-hunter2", b"\n"]) for _ in range(5000))
        write(path, output)
        first = open_spool(path, secrets=(SECRET,))
        first.finish()
        expected = read_all(first)
        for start in (0, 1, 17, 999, 5000, len(output) - 3):
            again = open_spool(path, start, secrets=(SECRET,))
            again.finish()
            assert read_all(again, start, step=source.randrange(1, 500)) == expected[start:]

    def test_the_agents_own_words_come_first(self, path: Path) -> None:
        spool = open_spool(path)
        spool.append(b"error: no such package\n")
        write(path, b"then the program")
        assert read_all(spool) == b"error: no such package\nthen the program"

    def test_a_closed_spool_gives_nothing(self, path: Path) -> None:
        spool = open_spool(path)
        write(path, b"words")
        spool.close()
        spool.close()
        assert spool.read(0, 10) is None
        spool.care()
        spool.acknowledged(3)


class TestDisk:
    def test_acknowledged_bytes_leave_the_disk_and_nothing_else_does(self, path: Path) -> None:
        output = random.Random(1).randbytes(3 * PUNCH_BYTES)
        write(path, output)
        spool = open_spool(path)
        spool.acknowledged(2 * PUNCH_BYTES + 10)
        assert on_disk(path) <= PUNCH_BYTES + 2 * BLOCK
        assert path.stat().st_size == len(output)
        assert read_all(spool, 2 * PUNCH_BYTES + 10, step=MIB) == output[2 * PUNCH_BYTES + 10 :]

    def test_what_masks_look_back_at_stays(self, path: Path) -> None:
        output = b"x" * (2 * PUNCH_BYTES - 8) + SECRET + b"y" * PUNCH_BYTES
        write(path, output)
        spool = open_spool(path, secrets=(SECRET,))
        spool.acknowledged(2 * PUNCH_BYTES)
        assert spool.read(2 * PUNCH_BYTES, 10) == b"*" * 7 + b"y" * 3

    def test_holes_can_be_made_under_a_writer_that_goes_on(self, path: Path, tmp_path: Path) -> None:
        program = (
            "import os, sys; log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\n"
            "for number in range(200_000): os.write(log, b'%09d\\n' % number)"
        )
        expected = b"".join(b"%09d\n" % number for number in range(200_000))
        spool = open_spool(path)
        with subprocess.Popen([sys.executable, "-c", program, str(path)]) as writer:
            seen = b""
            while writer.poll() is None or spool.size() > len(seen):
                piece = spool.read(len(seen), 100_000)
                seen += piece if isinstance(piece, bytes) else b""
                # Block by block, not in steps: as close behind the writer as can be.
                punch(spool._descriptor, 0, len(seen))
        assert writer.returncode == 0
        assert seen == expected
        assert path.stat().st_size == len(expected)
        assert on_disk(path) <= 2 * BLOCK

    def test_past_the_quota_the_oldest_unread_bytes_are_dropped_for_good(self, path: Path) -> None:
        output = random.Random(2).randbytes(20 * MIB)
        spool = open_spool(path, quota=8 * MIB)
        write(path, output[: 2 * MIB])
        assert spool.read(0, MIB) == output[:MIB]
        write(path, output[2 * MIB :])
        assert spool.wants_care(spool.size())
        spool.care()
        assert not spool.wants_care(spool.size())
        assert on_disk(path) <= 8 * MIB
        lost = spool.read(MIB, 10)
        assert isinstance(lost, LostBytes)
        assert (lost.offset, lost.kind) == (MIB, "DROPPED")
        assert read_all(spool, lost.end, step=MIB) == output[lost.end :]
        # What was read before may be on the wire: it can be read again.
        assert spool.read(0, MIB) == output[:MIB]
        assert spool.take_losses() == []
        spool.acknowledged(lost.end)
        assert kinds(spool.take_losses()) == [("DROPPED", MIB, lost.end - MIB)]

    def test_a_spool_that_pauses_drops_nothing_before_its_program_had_time_to_freeze(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fastflow_agent.logs.spool.PAUSE_SLACK_BYTES", 4 * MIB)
        spool = Spool.open(path, spool_quota=8 * MIB, pauses=True)
        write(path, os.urandom(12 * MIB))
        assert spool.backlog(spool.size()) > spool.quota
        assert not spool.wants_care(spool.size())
        write(path, b"x")
        assert spool.wants_care(spool.size())
        spool.care()
        assert isinstance(spool.read(0, 10), LostBytes)

    def test_a_spool_gives_way_where_all_together_hold_too_much(self, path: Path) -> None:
        spool = open_spool(path, quota=8 * MIB)
        write(path, os.urandom(6 * MIB))
        spool.share(4 * MIB)
        assert spool.wants_care(spool.size())
        spool.care()
        assert spool.backlog(spool.size()) <= 4 * MIB
        spool.share(2**62)
        assert spool.quota == 8 * MIB

    def test_a_drop_that_goes_on_is_one_loss(self, path: Path) -> None:
        spool = open_spool(path, quota=4 * MIB)
        for _ in range(10):
            write(path, os.urandom(3 * MIB))
            spool.care()
        lost = spool.read(0, 10)
        assert isinstance(lost, LostBytes)
        assert lost.end >= 26 * MIB
        assert isinstance(spool.read(lost.end, MIB), bytes)
        spool.acknowledged(30 * MIB)
        assert len(spool.take_losses()) == 1

    def test_after_a_restart_dropped_bytes_are_still_lost_and_no_zeros(self, path: Path) -> None:
        output = random.Random(3).randbytes(20 * MIB)
        write(path, output)
        spool = open_spool(path, quota=8 * MIB)
        spool.care()
        again = open_spool(path, quota=8 * MIB)
        lost = again.read(0, 10)
        assert isinstance(lost, LostBytes)
        assert read_all(again, lost.end, step=MIB) == output[lost.end :]
        # The control plane had the range skipped before the agent died: the fact is found again.
        late = open_spool(path, lost.end, quota=8 * MIB)
        assert kinds(late.take_losses()) == [("DROPPED", 0, lost.end)]

    def test_no_part_of_a_secret_shows_beside_dropped_bytes(self, path: Path) -> None:
        secret = b"0123456789abcdef" * 4
        output = secret * (16 * MIB // len(secret)) + b"z" * 100
        write(path, output)
        spool = open_spool(path, quota=4 * MIB, secrets=(secret,))
        spool.read(0, 1000)
        spool.care()
        spool.finish()
        shown = read_all(spool, 0, step=100_003)
        assert set(shown) == set(b"*?z")
        assert len(shown) == len(output)

    def test_past_the_log_limit_nothing_is_read_and_nothing_stays_on_the_disk(self, path: Path) -> None:
        spool = open_spool(path, limit=MIB)
        output = random.Random(4).randbytes(12 * MIB)
        write(path, output)
        assert read_all(spool, step=300_000) == output[:MIB]
        spool.care()
        assert on_disk(path) <= MIB + 2 * BLOCK
        write(path, output)
        spool.care()
        assert spool.finish() == MIB
        assert on_disk(path) <= MIB + 2 * BLOCK
        assert kinds(spool.take_losses()) == [("TRUNCATED", MIB, None)]

    def test_bytes_asked_for_again_after_they_left_the_disk_are_lost_and_no_zeros(self, path: Path) -> None:
        output = random.Random(5).randbytes(3 * PUNCH_BYTES)
        write(path, output)
        spool = open_spool(path)
        spool.acknowledged(2 * PUNCH_BYTES)
        lost = spool.read(100, 10)
        assert isinstance(lost, LostBytes)
        assert lost.end == 2 * PUNCH_BYTES
        assert kinds(spool.take_losses()) == [("DROPPED", 100, 2 * PUNCH_BYTES - 100)]
        after_restart = open_spool(path, 5000)
        lost = after_restart.read(5000, 10)
        assert isinstance(lost, LostBytes)
        assert lost.end == 2 * PUNCH_BYTES


def test_a_record_of_a_loss_that_a_crash_cut_off_counts_as_not_written(path: Path) -> None:
    write(path, b"x" * 1000)
    path.with_name("log.lost").write_bytes(b"DROPPED 100 200 a reason in words\nDROPPED 300 4")
    spool = open_spool(path)
    assert spool.read(0, 1000) == b"x" * 100
    assert isinstance(spool.read(100, 1000), LostBytes)
    assert spool.read(200, 1000) == b"x" * 800


def test_bytes_the_disk_does_not_give_back_are_lost_and_told(path: Path) -> None:
    write(path, b"x" * 1000)
    unreadable = os.open(path, os.O_WRONLY)
    lost = Lost.load(path.with_name("log.lost"))
    spool = Spool(unreadable, lost, start_offset=0, masks=Masks(), log_limit=MIB, spool_quota=MIB)
    found = spool.read(0, 600)
    assert isinstance(found, LostBytes)
    assert (found.kind, found.end) == ("DISK", 600)
    spool.acknowledged(600)
    assert kinds(spool.take_losses()) == [("DISK", 0, 600)]
    # It stays lost, should the disk come to its senses.
    assert isinstance(open_spool(path).read(0, 600), LostBytes)
    assert open_spool(path).read(600, 600) == b"x" * 400


def test_masks_of_no_secrets_cost_nothing() -> None:
    data = b"x" * 100
    assert Masks().apply(data) is data
    assert Masks().reach == 0
