"""What of libraries' talk reaches the person."""

import os

import pytest

from mpnet_ds.quiet import stderr_without


def write_lines() -> None:
    os.write(2, b"NOISE: of a library\nnot NOISE: of a library\nNOISE: again\n")


def fail() -> None:
    write_lines()
    raise KeyError


def test_lines_are_left_out_in_the_block_alone_and_the_others_kept(capfd):
    with stderr_without("NOISE"):
        write_lines()
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "not NOISE: of a library\n"
    write_lines()
    assert capfd.readouterr().err.count("NOISE: ") == 3


def test_lines_before_a_fault_appear(capfd):
    with pytest.raises(KeyError), stderr_without("NOISE"):
        fail()
    assert capfd.readouterr().err == "not NOISE: of a library\n"
