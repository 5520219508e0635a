"""Which rank says why a run did not start, and that the others leave after it."""

import os
import threading
from collections.abc import Callable

import pytest

from mpnet_ds import command_line
from mpnet_ds.errors import AgreedError, UserError
from mpnet_ds.last_word import leave_in_order, say


@pytest.fixture
def end(monkeypatch, capsys) -> Callable:
    """``end(error, rank, local_rank)``: whether a rank that ends with it is held back, and what it prints after that."""

    def end(error: Exception, rank: int, local_rank: int) -> tuple[bool, str]:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        before = []

        def hold_back(is_speaker: bool) -> None:
            leave_in_order(is_speaker, 9, spoken=lambda seconds: before.append(capsys.readouterr().err))

        def main() -> int:
            raise error

        monkeypatch.setattr(command_line, "leave_in_order", hold_back)
        with pytest.raises(SystemExit) as left:
            command_line.run(main)
        assert left.value.code == 2
        assert not any(before), "a rank that is held back has not spoken yet"
        return bool(before), capsys.readouterr().err

    return end


@pytest.mark.parametrize(
    ("rank", "local_rank", "waits", "said"),
    [(0, 0, False, "error: a is wrong.\n"), (1, 1, True, ""), (2, 0, True, ""), (3, 1, True, "")],
)
def test_what_the_ranks_have_agreed_on_is_said_by_rank_0_alone(end, rank, local_rank, waits, said):
    assert end(AgreedError("a is wrong."), rank, local_rank) == (waits, said)


@pytest.mark.parametrize(("rank", "local_rank", "waits"), [(0, 0, False), (1, 1, True), (2, 0, False), (3, 1, True)])
def test_what_each_rank_finds_itself_is_said_first_by_the_first_of_each_host(end, rank, local_rank, waits):
    assert end(UserError("a is wrong."), rank, local_rank) == (waits, "error: a is wrong.\n")


def test_ranks_are_held_back_until_the_speaker_has_spoken_and_the_speaker_until_it_is_heard():
    spoken, heard, order = threading.Event(), threading.Event(), []

    def listen() -> None:
        leave_in_order(False, 60, spoken=spoken.wait)
        order.append("listener")
        heard.set()

    listener = threading.Thread(target=listen)
    listener.start()
    order.append("speaker")
    spoken.set()
    leave_in_order(True, 60, heard=heard.wait)
    order.append("speaker leaves")
    listener.join()
    assert order == ["speaker", "listener", "speaker leaves"]


def test_a_speaker_that_nobody_needs_leaves_at_once():
    leave_in_order(True, 9, spoken=lambda seconds: pytest.fail("it waits for itself"))


def test_what_is_said_reaches_standard_error_itself_and_a_reader_that_is_gone_does_no_harm(capfd):
    say("the run stops")
    assert capfd.readouterr().err == "the run stops\n"
    reading, writing = os.pipe()
    os.close(reading)
    kept = os.dup(2)
    try:
        os.dup2(writing, 2)
        say("nobody reads this")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writing)
