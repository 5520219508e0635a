import io
import math
import re
import sys
from collections import Counter
from dataclasses import replace

import pytest

from mpnet_ds.command_line import invocation
from mpnet_ds.data import PretrainingDataset
from mpnet_ds.data.samples.show import COLOURS, describe, show
from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer import PretrainingTokenizer

ESCAPES = re.compile(r"\x1b\[\d*m")


def test_the_summary_tells_what_the_manifests_hold(dataset_folder, corpus_files):
    text = describe(dataset_folder)
    for folder in (dataset_folder, dataset_folder / "holdout"):
        manifest = DatasetManifest.load(folder)
        assert f": {manifest.documents:,} documents, {manifest.sequences:,} sequences, {manifest.tokens:,} tokens" in text
    assert corpus_files.txt in text
    assert "uint16" in text


def test_the_loss_of_word_frequencies_is_in_the_summary(dataset_folder, read_shard, tmp_path):
    tokens = Counter(id_ for id_ in read_shard(dataset_folder / "shard-00000").tokens if id_ not in (0, 1, 2, 998))
    shares = [count / tokens.total() for count in tokens.values()]
    loss = -sum(share * math.log(share) for share in shares)
    assert f"loss of word frequencies only: about {loss:.2f} nats (special tokens left out)" in describe(dataset_folder)
    replace(DatasetManifest.load(dataset_folder), piece_counts="").save(tmp_path)
    assert f"no counts of pieces: add them with {invocation('inspect_dataset', tmp_path, '--count')}" in describe(tmp_path)


def test_of_many_sources_some_are_listed(tmp_path, dataset_folder):
    manifest = DatasetManifest.load(dataset_folder)
    sources = [{"path": f"file-{number}.txt", "num_bytes": number} for number in range(1000)]
    replace(manifest, sources=sources).save(tmp_path)
    text = describe(tmp_path)
    assert "from file-9.txt, 9 bytes\nand 990 more sources, listed in dataset.json" in text
    assert len(text.splitlines()) < 20


def test_a_shown_sample_is_the_text_with_its_masking(dataset_folder, tokenizer_folder):
    data, tokenizer = PretrainingDataset(dataset_folder, 64), PretrainingTokenizer.load(tokenizer_folder)
    sample = data.batch([3])
    text, order = show(dataset_folder, 3, 64, colour=False).split("\n\n")
    true = [tokenizer.pieces[i] for i in sample["input_ids"][0]]
    drawn = r"\[([^\s→]+)→(\S+?)\](?!\])"
    restored = re.sub(drawn, r"\1", text)
    assert restored.replace(" ", "").replace("##", "") == "".join(true).replace("##", "")
    positions = [int(position) for position in sample["predicted_positions"][0] if position >= 0]
    assert order.endswith(f"in this order: {' '.join(true[position] for position in positions)}")
    inputs = dict(zip(positions, sample["predicted_inputs"][0].tolist(), strict=False))
    expected = [(true[position], tokenizer.pieces[inputs[position]]) for position in sorted(positions)]
    assert re.findall(drawn, text) == expected


def test_colours_tell_masked_kept_and_random_tokens_apart(dataset_folder):
    plain, coloured = (show(dataset_folder, 3, 256, colour=colour) for colour in (False, True))
    assert "\x1b" not in plain
    found = re.findall(r"(\x1b\[\d+m)([^\s→]+)→([^\s\x1b]+)\x1b\[0m", coloured)
    assert len(found) == plain.count("→") > 20
    for colour, true, seen in found:
        kind = "mask" if seen == "<mask>" else "kept" if seen == true else "random"
        assert colour == COLOURS[kind]
        assert f"{colour}{kind}" in coloured.split("\n\n")[1]
    assert len({colour for colour, _, _ in found}) == 3
    assert ESCAPES.sub("", coloured).split("\n\n")[1] == plain.split("\n\n")[1]


@pytest.mark.parametrize(("terminal", "no_color", "expected"), [(1, "", 1), (1, "1", 0), (0, "", 0)])
def test_colour_is_for_terminals_that_want_it(dataset_folder, monkeypatch, terminal, no_color, expected):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: bool(terminal), raising=False)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert ("\x1b" in show(dataset_folder, 0)) is bool(expected)


def test_a_sample_that_is_not_there_is_refused_with_the_range(dataset_folder):
    last = len(PretrainingDataset(dataset_folder, 64)) - 1
    for index in (-1, last + 1):
        with pytest.raises(UserError, match=rf"--show is {index}; .* samples 0 … {last} of 64 tokens"):
            show(dataset_folder, index, 64)


def test_an_encoding_without_arrows_gets_plain_characters(dataset_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert "->" in show(dataset_folder, 0)
