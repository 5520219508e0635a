"""Hostfiles are read as DeepSpeed's launcher reads them; what it would take in silence is an error."""

import pytest
from deepspeed.launcher.runner import _parse_hostfile
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.cluster.launcher_files import Host, read_hostfile
from mpnet_ds.errors import UserError

WORDS = st.sampled_from(
    [
        "node-a",
        "node-b",
        "user@10.0.0.1",
        "slots=4",
        "slots=1",
        " slots=16",
        "slots=",
        "slots=x",
        "slots=2x",
        "max=3",
        "#",
        " ",
        "\t",
    ]
)
LINES = st.lists(st.lists(WORDS, max_size=4).map(" ".join), max_size=5)


@pytest.fixture(scope="module")
def hostfile(tmp_path_factory):
    return tmp_path_factory.mktemp("hostfile") / "hosts"


@given(LINES)
def test_takes_what_deepspeed_takes(hostfile, lines):
    text = "\n".join(lines)
    hostfile.write_text(text)
    try:
        expected = [Host(name, slots) for name, slots in _parse_hostfile(text.splitlines(keepends=True)).items()]
    except ValueError:
        with pytest.raises(UserError):
            read_hostfile(hostfile)
    else:
        assert read_hostfile(hostfile) == expected


def test_missing_hostfile_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no hostfile .*hosts: .* HOST slots=N"):
        read_hostfile(tmp_path / "hosts")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node-a\n", r"hosts, line 1: 'node-a' names no host with its slots\. Each line must read: HOST slots=N"),
        ("# all\n\nnode-a slots = 4\n", r"hosts, line 3: 'node-a slots = 4'"),
        ("a slots=1\nb slots=1\na slots=2\n", r"hosts, line 3: a is in a line above already"),
        ("a slots=1\nb slots=0\n", r"hosts, line 2: b has slots=0"),
        ("# nothing\n", r"hosts names no host"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, message):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match=message):
        read_hostfile(tmp_path / "hosts")


def test_all_bad_lines_are_said_at_once(hostfile):
    hostfile.write_text("a\nb slots=0\n")
    with pytest.raises(UserError) as raised:
        read_hostfile(hostfile)
    assert len(raised.value.findings) == 2


def test_a_binary_is_no_hostfile(tmp_path):
    (tmp_path / "hosts").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="is not a hostfile"):
        read_hostfile(tmp_path / "hosts")
