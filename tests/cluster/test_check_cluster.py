"""``tools/check_cluster.py`` on real hosts: what is right passes, what is wrong is named by host, nothing stays behind."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import mpnet_ds
from mpnet_ds.data.storage.manifest import FILE_NAME, DatasetManifest
from tests.cluster.hosts import Cluster, Host

LISTEN = "import socket, time; s = socket.create_server(('', 29500)); print('listening', flush=True); time.sleep(600)"


FEW_LIBRARIES = """
import runpy
from mpnet_ds.cluster import check
check.LIBRARIES = ("mpnet_ds", "torch")  # the others take seconds on each host
runpy.run_path("tools/check_cluster.py", run_name="__main__")
"""


def check(host: Host, hostfile, *arguments):
    """The tool, started on a host: code, out, err."""
    return host.run(*program(hostfile, *arguments))


def program(hostfile, *arguments) -> list:
    return [sys.executable, "-c", FEW_LIBRARIES, "--hostfile", hostfile, "--min_disk", "1MB", *arguments]


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def left_behind(cluster: Cluster) -> list[list[str]]:
    """What still runs on the hosts after a few seconds; nothing, if all is well."""
    deadline = time.monotonic() + 10
    while (running := [p for host in cluster.hosts for p in host.processes("mpnet_ds.cluster")]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    return [process.cmdline() for process in running]


def findings(done) -> list[str]:
    """The numbered list on standard error, or the only one."""
    assert done.returncode == 2, done.stdout + done.stderr
    text = done.stderr[done.stderr.index("error: ") :]
    lines = text.splitlines()
    return [line.strip().partition(". ")[2] for line in lines[1:]] if len(lines) > 1 else [text.partition("error: ")[2]]


def another_dataset(dataset: Path, folder: Path) -> Path:
    """A copy with another shard, of which its manifest knows: a dataset that is sound, and not the same."""
    shutil.copytree(dataset, folder)
    manifest = json.loads((folder / FILE_NAME).read_text())
    manifest["shards"][0]["files"]["bin"]["sha256"] = "0" * 64
    (folder / FILE_NAME).write_text(json.dumps(manifest))
    return folder


def test_hosts_with_unequal_slots_are_in_order(cluster, dataset_folder):
    first, second, _ = cluster.hosts
    hostfile = cluster.hostfile({first: 2, second: 1})
    arguments = ["--hostfile", hostfile, "--data", dataset_folder, "--min_disk", "1MB"]
    done = first.run(sys.executable, "tools/check_cluster.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("All checks passed.\n")
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    for host, slots in ((first, "2"), (second, "1")):
        assert lines[host.name][1] == slots
        assert host.address in lines[host.name]
        assert "eth0" in lines[host.name]
    for collective in ("all_reduce", "all_gather"):
        (bus,) = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith(f"{collective}  1 ")]
        assert bus > 0
    assert left_behind(cluster) == []


def test_all_that_is_wrong_is_said_at_once(cluster, dataset_folder, tmp_path):
    """On hosts, between two of them, and of those that cannot be reached."""
    first, second, third = cluster.hosts
    other = tmp_path / "__init__.py"
    original = Path(mpnet_ds.__file__)
    other.write_text(original.read_text().replace(f'"{mpnet_ds.__version__}"', '"0.0.7"'))
    third.bind(other, original)
    second.bind(another_dataset(dataset_folder, tmp_path / "other"), dataset_folder)
    hostfile = cluster.hostfile({first: 1, second: 1, third: 99})
    hostfile.write_text(hostfile.read_text() + "nowhere slots=1\n10.77.0.99 slots=1\n")
    cluster.break_link(second, third)
    squatter = first.popen(sys.executable, "-c", LISTEN, stdout=-1)
    assert squatter.stdout.readline() == "listening\n"
    done = check(first, hostfile, "--data", dataset_folder)
    squatter.kill()
    squatter.communicate()
    found = findings(done)
    shard = DatasetManifest.load(dataset_folder).shards[0].name
    beginnings = [
        "nowhere: this name has no address",
        "10.77.0.99: ",
        f'mpnet_ds is "{mpnet_ds.__version__}" on {first.name}, {second.name}, but "0.0.7" on {third.name}',
        f"{third.name}: the code of mpnet_ds",
        f"{third.name}: the hostfile says slots=99",
        f"{second.name}: dataset {dataset_folder} is not that of {first.name}, {third.name}",
        f"{first.name}: port 29500 is in use by process",
        f"the link between {second.name} and {third.name} is broken: neither reaches the other (no answer)",
    ]
    for beginning in beginnings:
        assert sum(text.startswith(beginning) for text in found) == 1, (beginning, found)
    assert len(found) == len(beginnings), found
    assert any("differing: __init__.py" in text for text in found)
    assert any(f"differing: {shard}.bin" in text for text in found)
    assert "All checks passed" not in done.stdout
    assert "Bandwidth was not measured: a link is broken." in done.stdout
    assert left_behind(cluster) == []


@pytest.mark.long
def test_a_link_that_breaks_while_bandwidth_is_measured_is_named(cluster):
    first, second, third = cluster.hosts
    hostfile = cluster.hostfile({first: 1, second: 1, third: 1})
    running = first.popen(*program(hostfile), stdout=-1, stderr=-1)
    wait_for(lambda: third.processes("mpnet_ds.cluster.bandwidth"))
    cluster.break_link(second, third)
    out, err = running.communicate(timeout=240)
    assert running.returncode == 2, out + err
    assert "the bandwidth could not be measured" in err
    assert f"the link between {second.name} and {third.name} is broken: neither reaches the other (no answer)" in err
    assert left_behind(cluster) == []


@pytest.mark.long
def test_an_interrupted_check_leaves_nothing_behind(cluster):
    first, second, third = cluster.hosts
    hostfile = cluster.hostfile({first: 1, second: 1, third: 1})
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a job in the background has it ignored
    running = first.popen(*program(hostfile), stdout=-1, stderr=-1, **heard)
    wait_for(lambda: third.processes("mpnet_ds.cluster.bandwidth"))
    cluster.break_link(second, third)  # so that the measurement would not end by itself for long
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert err.rstrip().endswith("interrupted")
    assert left_behind(cluster) == []
