"""The example of a hostfile is one for DeepSpeed."""

from deepspeed.launcher.runner import fetch_hostfile

from tests.runs import ROOT


def test_deepspeed_reads_the_example():
    assert dict(fetch_hostfile(str(ROOT / "launch" / "hostfile.example"))) == {"node1": 8, "node2": 8, "192.0.2.13": 4}
