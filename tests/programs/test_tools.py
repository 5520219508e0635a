"""The programs as a user starts them."""

import gzip
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module

import pytest

from mpnet_ds.command_line import invocation
from mpnet_ds.command_line import run as run_program
from mpnet_ds.data.builder.import_indexed import import_dataset
from mpnet_ds.data.storage.manifest import DatasetManifest
from tests.runs import RECIPE, ROOT, TIMEOUT, command, pretrain

SCRIPTS = sorted([*(ROOT / "tools").glob("*.py"), ROOT / "launch" / "pretrain.py"])


def program_of(script):
    return import_module(f"mpnet_ds.programs.{script.stem}")


@pytest.fixture
def tool(monkeypatch, capsys):
    """``tool(name, *arguments, code=0)``: what a program prints in this process; it must end with this exit code."""

    def start(name, *arguments, code=0):
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_program(import_module(f"mpnet_ds.programs.{name}").main)
        out, err = capsys.readouterr()
        assert ended.value.code == code, err
        return err if code == 2 else out

    return start


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_calls_the_program_of_its_name_whose_help_shows_it(script):
    assert f"from mpnet_ds.programs.{script.stem} import main\n" in script.read_text()
    launcher = "deepspeed launch" if script.stem == "pretrain" else "python tools"
    assert f"example:\n  {launcher}/{script.name}" in program_of(script).build_parser().format_help()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_misspelt_flag_is_one_line_and_exit_code_2(script, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script.name, "--hlep"])
    with pytest.raises(SystemExit) as ended:
        program_of(script).main()
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", ["consolidate", "convert_to_hf"])
def test_a_path_that_is_too_long_is_one_line(tool, name, tmp_path):
    assert tool(name, "x" * 300, tmp_path / "out", code=2).endswith(": file name too long.\n")


def test_commands_can_be_pasted_wherever_the_user_stands(monkeypatch, tmp_path):
    assert invocation("inspect_dataset", "da ta", "$x") == "python tools/inspect_dataset.py 'da ta' '$x'"
    monkeypatch.chdir(tmp_path)
    assert invocation("inspect_dataset", tmp_path / "a") == f"python {ROOT}/tools/inspect_dataset.py {tmp_path}/a"
    assert invocation("pretrain", "--data", "d") == f"deepspeed {ROOT}/launch/pretrain.py --data d"
    monkeypatch.setenv("PATH", "/usr/bin")
    command = shlex.split(invocation("plot_run", "--help"))
    assert subprocess.run(command, capture_output=True, env={}, check=True).stdout.startswith(b"usage: plot_run.py")
    monkeypatch.setattr(sys, "argv", ["mpnet-ds inspect-dataset"])
    assert invocation("inspect_dataset", "d").endswith("mpnet-ds inspect-dataset d")


def test_help_of_a_script_is_printed_and_exits_with_0():
    done = command(sys.executable, "tools/fill_mask.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "example:\n  python tools/fill_mask.py my-model" in done.stdout


def test_the_whole_way_from_text_to_words(corpus_files, tmp_path, tool):
    tokenizer, data, run, weights, model = (tmp_path / name for name in ("tokenizer", "data", "run", "weights", "model"))
    assert "pieces in" in tool("train_tokenizer", "--input", corpus_files.jsonl, "--vocab_size", 800, "--output", tokenizer)
    built = tool(
        "build_dataset", "--input", corpus_files.jsonl, "--tokenizer", tokenizer, "--output", data, "--holdout", 0.1
    )
    documents = int(built.split()[0].replace(",", ""))
    held_out = json.loads((data / "holdout" / "dataset.json").read_text())["documents"]
    assert documents + held_out == len(corpus_files.documents)
    assert f"\n{held_out:,} documents, " in built
    assert pretrain(run, "--recipe", RECIPE, "--data", data, ranks=1).code == 0
    assert "model.safetensors" in tool("consolidate", run, weights)
    assert "agrees with the training model" in tool("convert_to_hf", run, model)
    words = tool("fill_mask", model, "return the <mask> of the list.", "--top", 3)
    assert words.count("%") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["build_dataset", "--input", "nowhere.txt", "--tokenizer", "nowhere", "--output", "out"],
            "no tokenizer at nowhere",
        ),
        (
            ["train_tokenizer", "--input", "nowhere.txt", "--vocab_size", "900", "--output", "out"],
            "nowhere.txt: no such file",
        ),
        (["inspect_dataset", "nowhere", "--verify"], "no dataset folder nowhere"),
        (["merge_datasets", "nowhere", "--output", "out"], "no dataset folder nowhere"),
        (
            ["import_dataset", "--input", "nowhere", "--tokenizer", "nowhere", "--output", "out"],
            "no tokenizer at nowhere",
        ),
        (["consolidate", "nowhere", "out"], "no checkpoint folder nowhere"),
        (["convert_to_hf", "nowhere", "out"], "no checkpoint in nowhere"),
        (["convert_from_hf", "nowhere", "out"], "nowhere is not a folder here"),
        (["convert_from_hf", "--from_fairseq", "nowhere.pt", "out"], "no file nowhere.pt"),
        (["convert_from_hf", "nowhere", "out", "--from_fairseq", "nowhere.pt"], "give one source and OUT"),
        (["convert_from_hf", "nowhere", "--resize_vocabulary", "none", "out"], "no tokenizer at none"),
        (["fill_mask", "nowhere", "the <mask>"], "nowhere is not a folder here"),
    ],
)
def test_what_is_missing_is_named(arguments, message, tmp_path, tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = tool(*arguments, code=2)
    assert "\nerror: " in "\n" + said  # on a busy machine after a line on what is being loaded
    assert message in said
    assert not list(tmp_path.iterdir())


def test_a_builder_names_all_mistakes_at_once(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--input", "a.txt", "b.txt", "--tokenizer", "./gone", "--holdout", "2", "--workers", "0", "--part", "9/3"]
    words += ["--csv_quotes", "x", "--on_error", "y", "--shard_size", "z", "--holdouts", "1"]
    said = tool("build_dataset", *words, code=2)
    parts = [
        "required: --output",
        "--shard_size: 'z'",
        "Did you mean --holdout?",
        "--on_error is 'y'",
        "--csv_quotes is 'x'",
    ]
    parts += [
        "part 9 of 3",
        "--holdout is 2.0",
        "--workers is 0",
        "a.txt: no such",
        "b.txt: no such",
        "no tokenizer at gone",
    ]
    assert f"{len(parts)} problems to fix" in said
    assert all(part in said for part in parts), said


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            "train_tokenizer --input gone --vocab_size 3 --character_coverage 7 --on_error bar --output full",
            ["--on_error", "--vocab_size is 3", "--character_coverage is 7", "gone: no such file", "full exists"],
        ),
        ("merge_datasets gone away --output full", ["no dataset folder gone", "no dataset folder away", "full exists"]),
        (
            "import_dataset --input gone --tokenizer away --output full",
            ["no tokenizer at away", "gone.idx", "full exists"],
        ),
        ("consolidate gone full --dtype foo", ["unknown dtype 'foo'", "no checkpoint folder gone", "full exists"]),
        (
            "convert_to_hf gone full --dtype foo --plugins nomod",
            ["no module 'nomod'", "unknown dtype 'foo'", "no checkpoint in gone", "full exists"],
        ),
        (
            "convert_from_hf ./gone full --tokenizer ./away --resize_vocabulary ./none",
            ["away", "none", "gone", "full exists"],
        ),
        ("check_cluster --hostfile gone --data full:x full:y", ["no hostfile gone", "'x' is not a weight", "'y' is not"]),
        ("plot_run gone away --x foo --output far/x.png", ["no such run: gone", "away", "--x is 'foo'", "no folder far"]),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_a_program_names_all_mistakes_at_once(words, parts, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/of").touch()
    said = tool(*words.split(), code=2)
    assert f"{len(parts)} problems to fix" in said
    assert all(part in said for part in parts), said


def test_ctrl_c_ends_the_training_of_a_tokenizer_at_once_and_leaves_nothing(tmp_path):
    block = gzip.compress(b"\n\n".join(b"document %d of many" % i for i in range(100_000)))
    (tmp_path / "a.txt.gz").write_bytes(block * 200)  # minutes
    what = ["--input", tmp_path / "a.txt.gz", "--vocab_size", 900, "--output", tmp_path / "tokenizer"]
    process = subprocess.Popen(
        list(map(str, [sys.executable, ROOT / "tools" / "train_tokenizer.py", *what])),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job in the background ignores it
    )
    try:
        deadline = time.monotonic() + TIMEOUT
        while not (tmp_path / "tokenizer.partial").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1)  # the library has begun
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, errors.splitlines()[-1]) == (130, "interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt.gz"]


def test_inspection_shows_lengths_and_a_sample_in_plain_text_in_a_pipe(dataset_folder, tool):
    said = tool("inspect_dataset", dataset_folder, "--verify", "--show", 0, "--seq_length", 64)
    for expected in ("bytes are sound", "tokens in a document:", "median", "<mask>]", "predicted: "):
        assert expected in said
    assert "\x1b" not in said


def test_an_old_dataset_is_counted_and_then_described(dataset_folder, tmp_path, tool):
    folder = shutil.copytree(dataset_folder, tmp_path / "old")
    replace(DatasetManifest.load(folder), piece_counts="").save(folder)
    assert "loss of word frequencies" not in tool("inspect_dataset", folder)
    first, second, _, *rest = tool("inspect_dataset", folder, "--count").splitlines()
    assert first.startswith(f"{folder}: counted the pieces of ")
    assert second == f"{folder / 'holdout'} has its counts already"
    assert "loss of word frequencies only: about " in "\n".join(rest)


def test_a_terminal_of_ascii_gets_ascii(tokenizer_folder, write_foreign, tmp_path, monkeypatch):
    prefix = write_foreign(tmp_path / "français", [[[5, 6, 7, 8, 9] * 10]])
    import_dataset([str(prefix)], tokenizer_folder, tmp_path / "data", show_progress=False)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = command(sys.executable, "tools/inspect_dataset.py", tmp_path / "data", "--show", 0, "--seq_length", 16)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "fran\\xe7ais" in done.stdout


def test_damage_is_printed_with_its_position_and_exit_code_1(dataset_folder, tmp_path, tool):
    folder = shutil.copytree(dataset_folder, tmp_path / "damaged")
    path = folder / "shard-00000.bin"
    path.write_bytes(b"\xff\xff" + path.read_bytes()[2:])
    said = tool("inspect_dataset", folder, "--verify", code=1)
    assert f"{path}: bytes 0 to " in said
    assert f"{path}: byte 0 (sequence 0, document 0): an id that is not below 999" in said
    assert "2 problem(s)" in said


def test_imported_and_built_datasets_merge_and_are_sound(dataset_folder, tokenizer_folder, write_foreign, tmp_path, tool):
    prefix = write_foreign(tmp_path / "train", [[[5, 6, 2], [2], [7, 2]]], kind="fairseq")
    imported, merged = tmp_path / "imported", tmp_path / "merged"
    said = tool("import_dataset", "--input", prefix, "--tokenizer", tokenizer_folder, "--output", imported)
    assert said == "2 documents, 2 sequences, 5 tokens\n"
    said = tool("merge_datasets", dataset_folder, imported, "--output", merged, "--partial_holdout", "--copy")
    assert said.startswith("2 shard(s)")
    assert "bytes are sound" in tool("inspect_dataset", merged, "--verify")
