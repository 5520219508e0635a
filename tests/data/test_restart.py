"""Builds that are killed, interrupted or out of disk space continue, and end with the same bytes."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from mpnet_ds.data import BuildOptions, ReadOptions, build_dataset
from mpnet_ds.data.builder.workers import build_shards
from mpnet_ds.errors import UserError
from mpnet_ds.files import LOCK, new_folder, partial_folder
from tests.data.builder.test_wordpiece_memo import real_text
from tests.runs import ROOT

TOOL = str(ROOT / "tools" / "build_dataset.py")


def write_corpus(folder, num_bytes):
    """Real text in a large file and some small ones."""
    folder.mkdir()
    lines = list(real_text(num_bytes))
    (folder / "large.txt").write_text("\n".join(lines[:-20_000]), encoding="utf-8", errors="ignore")
    for number in range(10):
        chosen = lines[-20_000 + 2000 * number :][:2000]
        (folder / f"small{number}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in chosen))


@pytest.fixture(scope="module")
def corpus(made_once):
    """Enough text for a build by several processes to be killed while it runs."""
    return made_once("corpus-of-5-mb", lambda folder: write_corpus(folder, 5 << 20))


def command(corpus, tokenizer, output, workers=2):
    given = ["--input", corpus, "--tokenizer", tokenizer, "--output", output, "--holdout", "0.05", "--shard_size", "200kB"]
    return [sys.executable, TOOL, *map(str, given), "--workers", str(workers)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shards_in(folder):
    return {name: data for name, data in contents(folder).items() if name.endswith((".bin", ".idx"))}


def group_lives(leader):
    """Whether anybody is left of a group of processes, also where its first one has ended."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def workers_of(build):
    """The processes of a build that make its shards; beside them it has Python's resource tracker."""
    found = []
    for child in psutil.Process(build.pid).children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "multiprocessing.spawn" in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill(process, whom):
    """SIGKILL for all of a build's processes that touch its folder, for the first one, or for one of its workers."""
    if whom == "all":
        os.killpg(process.pid, signal.SIGSTOP)  # at one moment
        for each in (psutil.Process(process.pid), *workers_of(process)):
            each.kill()
        os.killpg(process.pid, signal.SIGCONT)  # Python's resource tracker: removes their semaphores from /dev/shm, and ends
    elif whom == "parent":
        process.kill()
    else:
        for worker in workers_of(process)[-1:]:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                worker.kill()
    return process.wait(timeout=60)


def num_finished(folder):
    """Shards of an unfinished build that have their record."""
    try:
        return sum(name.startswith("shard-") and name.endswith(".json") for name in os.listdir(folder))
    except FileNotFoundError:  # not begun, or all is finished and has its name
        return 0


def wait_for_shards(folder, count, build=None):
    """Until so many are finished, or the ``build`` has ended."""
    deadline = time.monotonic() + 60
    while num_finished(folder) < count and (build is None or build.poll() is None):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("kills_wanted", [3, pytest.param(20, marks=pytest.mark.long)])
def test_a_build_killed_at_random_moments_ends_with_the_same_bytes(corpus, tokenizer_folder, tmp_path, kills_wanted):
    output, partial = tmp_path / "dataset", tmp_path / "dataset.partial"
    arguments = command(corpus, tokenizer_folder, output)
    subprocess.run(arguments, check=True, capture_output=True)
    undisturbed = contents(output)
    shutil.rmtree(output)
    chance, kills, finished = random.Random(1), 0, 0
    expected = {"worker": 2, "parent": -signal.SIGKILL, "all": -signal.SIGKILL}
    while kills < kills_wanted or (kills_wanted > 3 and not finished):
        whom = list(expected)[kills % 3]
        before = num_finished(partial)
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for_shards(partial, before + chance.randint(1 if whom == "worker" else 0, 8), process)  # then it has workers
        time.sleep(chance.uniform(0, 0.3))
        code = kill(process, whom) if process.poll() is None else process.returncode
        assert code in (0, expected[whom])
        kills += code != 0
        if output.exists():  # not before all of it is there
            assert contents(output) == undisturbed
            shutil.rmtree(output)
            finished += 1
    subprocess.run(arguments, check=True, capture_output=True)
    assert contents(output) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def stop_after(count):
    """``build_shards`` that ends as Ctrl-C ends it after ``count`` shards."""

    def build_some(job, plans, advance):
        numbers = sorted(plans)[:count]
        build_shards(job, {number: plans[number] for number in numbers}, advance)
        raise KeyboardInterrupt

    return build_some


class Interrupted:
    """A build of ``folder/dataset`` in this process that was interrupted after three of its shards."""

    def __init__(self, folder, text, tokenizer):
        self.input, self.tokenizer, self.output = folder / "text.txt", tokenizer, folder / "dataset"
        self.partial = folder / "dataset.partial"
        shutil.copyfile(text, self.input)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mpnet_ds.data.builder.dataset_builder.build_shards", stop_after(3))
            with pytest.raises(KeyboardInterrupt):
                self.build()
        (self.partial / "shard-00003.bin.4711.tmp").write_bytes(b"of a killed worker")

    def build(self, inputs=(), output=None, tokenizer=None, **options):
        options = BuildOptions(**{"holdout": 0.05, "shard_bytes": 8_000, "workers": 1} | options)
        inputs = [str(path) for path in (self.input, *inputs)]
        return build_dataset(inputs, tokenizer or self.tokenizer, output or self.output, options)


@pytest.fixture
def interrupted(corpus_files, tokenizer_folder, tmp_path):
    return Interrupted(tmp_path, corpus_files.txt, tokenizer_folder)


def test_a_continued_build_has_the_manifest_of_an_undisturbed_one(interrupted, tmp_path):
    interrupted.build(output=tmp_path / "undisturbed")
    interrupted.build()
    for name in ("dataset.json", "holdout/dataset.json"):
        assert (interrupted.output / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_a_shard_of_which_the_counts_are_damaged_is_built_again(interrupted, tmp_path):
    path = interrupted.partial / "shard-00001.json"
    record = json.loads(path.read_text())
    record["piece_counts"]["training"] = record["piece_counts"]["training"][:-8]
    path.write_text(json.dumps(record))
    before = (interrupted.partial / "shard-00001.bin").stat().st_mtime_ns
    built = interrupted.build()
    assert (interrupted.output / "shard-00001.bin").stat().st_mtime_ns > before
    assert built.decoded_piece_counts().sum() == built.tokens


def test_a_build_that_an_older_version_began_ends_without_counts_of_pieces(interrupted):
    path = interrupted.partial / "shard-00001.json"
    record = json.loads(path.read_text())
    del record["piece_counts"]
    path.write_text(json.dumps(record))
    assert interrupted.build().decoded_piece_counts() is None


def test_continuing_builds_only_what_is_missing(interrupted, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in interrupted.partial.glob("shard-*.bin")}
    interrupted.build()
    assert "Continuing: 3 of " in capsys.readouterr().err
    after = {path.name: path.stat().st_mtime_ns for path in interrupted.output.glob("shard-*.bin")}
    assert [name for name in before if name.endswith(".bin") and after[name] != before[name]] == []
    assert len(before) == 3 < len(after)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sentences": "document"}, "--sentences was line and is now document"),
        ({"inputs": [__file__.replace(".py", ".nothing")]}, "no such file"),
        ({"holdout": 0.5}, "--holdout was 0.05 and is now 0.5"),
    ],
)
def test_continuing_with_something_else_is_refused_with_the_difference(interrupted, options, words):
    before = contents(interrupted.partial)
    with pytest.raises(UserError, match=words):
        interrupted.build(**options)
    assert {name: data for name, data in contents(interrupted.partial).items() if name != LOCK} == {
        name: data for name, data in before.items() if name != LOCK and not name.endswith(".tmp")
    }


def test_continuing_with_a_changed_corpus_or_tokenizer_is_refused(interrupted, tmp_path, save_word_tokenizer):
    with pytest.raises(UserError, match="the tokenizer was"):
        interrupted.build(tokenizer=save_word_tokenizer(tmp_path / "other", 10))
    os.utime(interrupted.input, (0, 0))
    with pytest.raises(UserError, match=r"text\.txt has changed"):
        interrupted.build()


def test_two_builders_of_one_folder_do_not_mix(interrupted):
    with (
        partial_folder(interrupted.output),
        pytest.raises(UserError, match=rf"is being created by another process \(process {os.getpid()} on "),
    ):
        interrupted.build()
    interrupted.build()


def start_in_the_foreground(arguments):
    """A build that Ctrl-C reaches, in a group of its own."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background has it ignored
    )


def only_line_of_interrupted(process):
    """What a build says that Ctrl-C has ended; it must have ended with all its processes."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    (line,) = (line for line in errors.splitlines() if not line.startswith("Building: "))  # which is its progress
    deadline = time.monotonic() + 10
    while group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not group_lives(process.pid)
    return line


@pytest.mark.parametrize("presses", [1, pytest.param(2, marks=pytest.mark.long)])
def test_an_interrupted_build_says_that_it_can_be_continued(corpus, tokenizer_folder, tmp_path, presses):
    process = start_in_the_foreground(command(corpus, tokenizer_folder, tmp_path / "dataset"))
    wait_for_shards(tmp_path / "dataset.partial", 2)
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        time.sleep(0.3)
    errors = only_line_of_interrupted(process)
    assert "interrupted" in errors
    assert "the same command continues" in errors


def test_a_second_ctrl_c_on_the_way_out_takes_nothing_from_what_is_said(
    corpus_files, tokenizer_folder, tmp_path, monkeypatch, ctrl_c_interrupts
):
    def press_after_one_shard(job, plans, advance):
        number = min(plans)
        build_shards(job, {number: plans[number]}, advance)
        signal.raise_signal(signal.SIGINT)

    @contextmanager
    def press_when_it_is_let_go(output):
        with partial_folder(output) as folder:
            try:
                yield folder
            finally:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("mpnet_ds.data.builder.dataset_builder.build_shards", press_after_one_shard)
    monkeypatch.setattr("mpnet_ds.data.builder.dataset_builder.partial_folder", press_when_it_is_let_go)
    with pytest.raises(KeyboardInterrupt, match=r"1 finished shards are kept; the same command continues"):
        build_dataset([corpus_files.txt], tokenizer_folder, tmp_path / "dataset", show_progress=False)
    with pytest.raises(KeyboardInterrupt):  # it is as it was before
        signal.raise_signal(signal.SIGINT)


def has_an_answer_to_ctrl_c(process):
    """Whether a process has come so far that it handles or ignores SIGINT; before, that ends it without a word."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return any(int(status[kind], 16) >> signal.SIGINT - 1 & 1 for kind in ("SigCgt", "SigIgn"))


def test_ctrl_c_while_workers_start_is_one_line_too(corpus, tokenizer_folder, tmp_path):
    """From then on until they ignore it, Python would have them print a traceback each."""
    process = start_in_the_foreground(command(corpus, tokenizer_folder, tmp_path / "dataset"))
    deadline = time.monotonic() + 60
    while len(workers := workers_of(process)) < 2 or not all(map(has_an_answer_to_ctrl_c, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert only_line_of_interrupted(process) == "interrupted"
    assert not list(tmp_path.iterdir())


DIES_COUNTING = """
import os, signal, sys, time
from dataclasses import replace
from mpnet_ds.command_line import run
from mpnet_ds.data import BuildOptions, build_dataset
from mpnet_ds.data.builder.shard_builder import ShardBuilder

class Deadly(int):
    def __radd__(self, count):
        time.sleep(0.5)  # the parent polls five times a second
        os.kill(os.getpid(), signal.SIGKILL)

blocks = ShardBuilder.blocks
ShardBuilder.blocks = lambda *what: (replace(block, num_bytes=Deadly(block.num_bytes)) for block in blocks(*what))

if __name__ == "__main__":
    source, tokenizer, output = sys.argv[1:]
    run(lambda: build_dataset([source], tokenizer, output, BuildOptions(shard_bytes=1000, workers=2)))
"""


def test_a_worker_that_is_killed_while_it_counts_does_not_hold_the_build_up(corpus_files, tokenizer_folder, tmp_path):
    """It holds the lock of the count, which nobody will ever release: workers run this script's top, and die adding."""
    script = tmp_path / "script.py"
    script.write_text(DIES_COUNTING)
    arguments = list(map(str, [sys.executable, script, corpus_files.txt, tokenizer_folder, tmp_path / "dataset"]))
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            kill(process, "all")
    assert (process.returncode, "a worker process died" in errors) == (2, True), errors


def test_shards_finished_before_a_fault_are_kept_and_the_fault_can_be_skipped(tokenizer_folder, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a fine document\n\n" * 100 + b"bad \xff\n\n" + b"fine again\n\n" * 100)
    what = ([str(tmp_path / "a.txt")], tokenizer_folder, tmp_path / "dataset", BuildOptions(shard_bytes=500, workers=1))
    with pytest.raises(UserError, match=r"byte 1704 .*finished shards are kept"):
        build_dataset(*what, show_progress=False)
    assert len(list((tmp_path / "dataset.partial").glob("shard-*.json"))) == 3
    manifest = build_dataset(*what, ReadOptions(on_error="skip"), show_progress=False)
    assert manifest.documents == 200
    assert manifest.left_out["faulty_documents"] == 1


def test_a_build_that_failed_at_once_leaves_nothing(tokenizer_folder, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"bad \xff\n\n")
    with pytest.raises(UserError):
        build_dataset([str(tmp_path / "a.txt")], tokenizer_folder, tmp_path / "dataset", show_progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_limit_on_file_sizes_is_met_like_a_full_disk(interrupted):
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, limits[1]))
    try:
        with pytest.raises(UserError, match=r"Free some space .*the same command continues"):
            interrupted.build()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not interrupted.output.exists()
    interrupted.build()


def can_mount():
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True) if shutil.which("unshare") else None
    return done is not None and done.returncode == 0


@pytest.mark.skipif(not can_mount(), reason="this user may not mount a small file system of its own")
@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.long)])
def test_a_full_disk_is_named_and_the_build_continues_when_there_is_space(corpus, tokenizer_folder, tmp_path, workers):
    (tmp_path / "disk").mkdir()
    arguments = command(corpus, tokenizer_folder, tmp_path / "disk" / "dataset", workers)
    script = """
        mount -t tmpfs -o size=1m tmpfs "$DISK"; "$@"; code=$?
        find "$DISK" -name dataset.json | grep . && exit 99
        mount -o remount,size=100m "$DISK"; "$@" >&2 && test -f "$DISK/dataset/dataset.json" && exit $code
    """
    shell = ["unshare", "--mount", "bash", "-c", script, "build", *arguments]
    done = subprocess.run(shell, capture_output=True, text=True, env=os.environ | {"DISK": str(tmp_path / "disk")})
    assert done.returncode == 2
    assert "Free some space" in done.stderr
    assert "the same command continues" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "disk" / "dataset").exists()
    assert "No space left on device" in done.stderr
    assert "Continuing:" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0 and not can_mount(), reason="root may write everywhere, and may not mount")
def test_a_read_only_folder_is_named(corpus, tokenizer_folder, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    arguments = command(corpus, tokenizer_folder, folder / "dataset")
    if os.geteuid() == 0:
        script = 'mount -t tmpfs -o ro tmpfs "$DISK"; "$@"'
        arguments = ["unshare", "--mount", "bash", "-c", script, "build", *arguments]
    done = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | {"DISK": str(folder)})
    assert done.returncode == 2
    assert f"cannot write to {folder}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_remains_of_a_build_with_other_options_do_not_get_into_the_dataset(corpus_files, tokenizer_folder, tmp_path):
    """A kill between a shard's files and its record leaves files that nobody knows of."""
    build_dataset([corpus_files.txt], tokenizer_folder, tmp_path / "expected", BuildOptions(workers=1), show_progress=False)
    partial = tmp_path / "dataset.partial"
    (partial / "holdout").mkdir(parents=True)
    (partial / LOCK).touch()
    for name in (
        "shard-00000.bin",
        "shard-00007.bin",
        "shard-00007.idx",
        "holdout/shard-00000.bin",
        "shard-00000.idx.1.tmp",
    ):
        (partial / name).write_bytes(b"old")
    build_dataset([corpus_files.txt], tokenizer_folder, tmp_path / "dataset", BuildOptions(workers=1), show_progress=False)
    assert contents(tmp_path / "dataset").keys() == contents(tmp_path / "expected").keys()


def test_what_workers_of_a_killed_build_write_a_moment_longer_does_not_get_into_the_dataset(
    corpus_files, tokenizer_folder, tmp_path, monkeypatch
):
    """They notice within a fifth of a second that they are orphans; the next build may have begun."""
    options = BuildOptions(holdout=0.1, workers=1)

    def build_beside_an_orphan(job, *what):
        for folder in (job.side("training"), job.side("holdout")):
            (folder / "shard-00000.bin.1.tmp").write_bytes(b"of another")
        build_shards(job, *what)

    monkeypatch.setattr("mpnet_ds.data.builder.dataset_builder.build_shards", build_beside_an_orphan)
    build_dataset([corpus_files.txt], tokenizer_folder, tmp_path / "dataset", options, show_progress=False)
    assert [name for name in contents(tmp_path) if name.endswith(".tmp")] == []


def test_a_shard_that_was_lost_or_truncated_since_is_built_again(interrupted, tmp_path):
    lost, truncated, damaged = sorted(interrupted.partial.glob("shard-*.json"))
    lost.with_suffix(".bin").unlink()
    with open(truncated.with_suffix(".idx"), "r+b") as file:
        file.truncate(10)
    damaged.write_text("{")
    interrupted.build()
    interrupted.build(output=tmp_path / "fresh")
    assert shards_in(interrupted.output) == shards_in(tmp_path / "fresh")


def test_a_damaged_plan_is_named(interrupted):
    (interrupted.partial / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        interrupted.build()


def test_a_damaged_dataset_is_not_taken_for_the_result(corpus_files, tokenizer_folder, tmp_path):
    what = ([corpus_files.txt], tokenizer_folder, tmp_path / "dataset")
    build_dataset(*what, show_progress=False)
    (tmp_path / "dataset" / "shard-00000.bin").unlink()
    with pytest.raises(UserError, match=r"already exists\. .*shard-00000\.bin is missing.* remove it first"):
        build_dataset(*what, show_progress=False)


def test_a_folder_of_the_users_that_has_the_partial_name_is_left_alone(corpus_files, tokenizer_folder, tmp_path):
    (tmp_path / "dataset.partial" / "sub").mkdir(parents=True)
    (tmp_path / "dataset.partial" / "thesis.doc").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.partial is needed .* but holds something else"):
        build_dataset([corpus_files.txt], tokenizer_folder, tmp_path / "dataset", show_progress=False)
    with pytest.raises(UserError, match="holds something else"), new_folder(tmp_path / "dataset"):
        pass
    assert contents(tmp_path) == before


def test_another_program_does_not_take_the_folder_of_an_interrupted_build(interrupted):
    before = shards_in(interrupted.partial)
    with pytest.raises(UserError, match="holds an interrupted build"), new_folder(interrupted.output):
        pass
    assert shards_in(interrupted.partial) == before


def test_a_dataset_inside_of_its_corpus_is_refused_and_older_ones_are_no_text(corpus_files, tokenizer_folder, tmp_path):
    shutil.copy(corpus_files.txt, tmp_path / "text.txt")
    what = ([str(tmp_path)], tokenizer_folder)
    with pytest.raises(UserError, match="is inside --input"):
        build_dataset(*what, tmp_path / "dataset", show_progress=False)
    shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")  # its vocab.txt is a .txt
    built = build_dataset(*what, tmp_path.with_name("outside"), show_progress=False)
    assert [source["path"] for source in built.sources] == [str(tmp_path / "text.txt")]


def test_files_are_on_disk_before_their_record_and_all_is_before_the_name(
    corpus_files, tokenizer_folder, tmp_path, monkeypatch
):
    """The order of what survives a power cut: each file is synced under its first name before it gets its last."""
    events = []
    fsync, rename = os.fsync, os.replace

    def recorded_fsync(descriptor):
        events.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def recorded_replace(source, target):
        events.append(("name", os.path.basename(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    build_dataset([corpus_files.txt], tokenizer_folder, tmp_path / "dataset", BuildOptions(workers=1), show_progress=False)
    order = [
        ("sync", f"shard-00000.bin.{os.getpid()}.tmp"), ("name", "shard-00000.bin"),
        ("sync", f"shard-00000.idx.{os.getpid()}.tmp"), ("name", "shard-00000.idx"), ("sync", "dataset.partial"),
        ("sync", "shard-00000.json.tmp"), ("name", "shard-00000.json"), ("sync", "tokenizer.json"),
        ("sync", "dataset.json.tmp"), ("name", "dataset.json"), ("sync", "dataset.partial"), ("name", "dataset"),
    ]  # fmt: skip
    remaining = iter(events)
    assert [event for event in order if event in remaining] == order  # "in" moves on to where the event is
