"""Sealing: what is stored can be opened with its key, for its purpose, and with nothing else."""

import base64
import threading
from pathlib import Path

import pytest
from fastflow_controlplane.errors import DataLoss, FailedPrecondition
from fastflow_controlplane.secrets.sealing import KEY_BYTES, Sealer
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "secret.key"


@pytest.fixture
def sealer(key_file: Path) -> Sealer:
    return Sealer.load(key_file)


def key(number: int) -> str:
    return base64.b64encode(bytes([number]) * KEY_BYTES).decode()


def test_a_new_key_file_can_be_read_by_its_owner_alone(sealer: Sealer, key_file: Path) -> None:
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in key_file.parent.iterdir()] == ["secret.key"]


def test_what_was_sealed_can_be_opened_after_a_restart(sealer: Sealer, key_file: Path) -> None:
    sealed = sealer.seal(b"hunter2", b"context")
    assert b"hunter2" not in sealed
    assert Sealer.load(key_file).open(sealed, b"context") == b"hunter2"


@given(data=st.binary(max_size=300), context=st.binary(max_size=40))
def test_any_value_makes_the_round_trip_and_is_never_sealed_alike(data: bytes, context: bytes) -> None:
    sealer = Sealer([b"k" * KEY_BYTES], Path("secret.key"))
    sealed = sealer.seal(data, context)
    assert sealer.open(sealed, context) == data
    assert sealer.seal(data, context) != sealed


def test_a_sealed_value_can_not_stand_in_the_place_of_another(sealer: Sealer) -> None:
    sealed = sealer.seal(b"hunter2", b"secret A version 1")
    with pytest.raises(DataLoss, match="damaged, or sealed with another key"):
        sealer.open(sealed, b"secret A version 2")


def test_another_key_opens_nothing_and_says_which_file_is_wrong(sealer: Sealer, tmp_path: Path) -> None:
    other = Sealer.load(tmp_path / "other.key")
    with pytest.raises(DataLoss, match=r"the key file is .*other\.key: .* restore both from the same backup") as caught:
        other.open(sealer.seal(b"hunter2"))
    assert caught.value.reason == "SECRET_NOT_READABLE"


@pytest.mark.parametrize("position", [0, 1, 2, 13, 14, -1])
def test_every_damaged_byte_is_noticed(sealer: Sealer, position: int) -> None:
    sealed = bytearray(sealer.seal(b"hunter2"))
    sealed[position] ^= 1
    with pytest.raises(DataLoss):
        sealer.open(bytes(sealed))


@given(st.binary(max_size=40))
def test_what_was_never_sealed_is_data_loss(data: bytes) -> None:
    with pytest.raises(DataLoss):
        Sealer([b"k" * KEY_BYTES], Path("secret.key")).open(data)


def test_a_new_first_key_seals_and_the_old_one_still_opens(key_file: Path) -> None:
    key_file.parent.mkdir()
    key_file.write_text(key(1))
    old = Sealer.load(key_file).seal(b"old")
    key_file.write_text(f"# rotated\n{key(2)}\n{key(1)}\n")
    rotated = Sealer.load(key_file)
    assert rotated.open(old) == b"old"
    new = rotated.seal(b"new")
    key_file.write_text(key(1))
    with pytest.raises(DataLoss, match="a key that is not in the key file"):
        Sealer.load(key_file).open(new)


def test_processes_that_start_at_once_use_the_same_key(key_file: Path) -> None:
    sealers: list[Sealer] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        sealers.append(Sealer.load(key_file))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sealed = sealers[0].seal(b"x")
    assert [sealer.open(sealed) for sealer in sealers] == [b"x"] * 8
    assert len(list(key_file.parent.iterdir())) == 1


@pytest.mark.parametrize(
    "content",
    ["", "# nothing\n", "not base64!\n", base64.b64encode(b"short").decode(), f"{key(1)}\n{key(1)}\n", "\xff"],
)
def test_a_key_file_of_something_else_is_refused_and_kept(key_file: Path, content: str) -> None:
    key_file.parent.mkdir()
    key_file.write_bytes(content.encode("latin-1"))
    with pytest.raises(FailedPrecondition, match=r"the key file .*secret\.key can not be used"):
        Sealer.load(key_file)
    assert key_file.read_bytes() == content.encode("latin-1")


def test_a_key_file_that_others_may_read_is_warned_of(
    sealer: Sealer, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key_file.chmod(0o644)
    Sealer.load(key_file)
    assert "chmod 600" in "".join(capsys.readouterr())


def test_neither_sealer_nor_error_shows_a_key_or_value(sealer: Sealer, key_file: Path) -> None:
    secret = key_file.read_text().splitlines()[-1]
    assert secret not in repr(sealer)
    with pytest.raises(DataLoss) as caught:
        sealer.open(b"hunter2" * 10)
    assert "hunter2" not in str(caught.value)


def test_a_fingerprint_tells_equal_values_and_needs_the_key(sealer: Sealer, tmp_path: Path) -> None:
    assert sealer.fingerprint(b"x") == sealer.fingerprint(b"x") != sealer.fingerprint(b"y")
    assert Sealer.load(tmp_path / "other.key").fingerprint(b"x") != sealer.fingerprint(b"x")


def test_the_key_is_random(tmp_path: Path) -> None:
    keys = set()
    for number in range(5):
        Sealer.load(tmp_path / str(number))
        keys.add((tmp_path / str(number)).read_text())
    assert len(keys) == 5
    assert (tmp_path / "0").stat().st_nlink == 1
