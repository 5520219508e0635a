"""``clm``: what is predicted from what, isolated documents, padding, control codes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.data import BuildOptions, build_dataset
from mpnet_ds.data.samples.mixture import open_datasets
from mpnet_ds.data.storage.provenance import Provenance
from mpnet_ds.objectives import objective_of
from mpnet_ds.objectives.base import Sequences, Vocabulary

VOCABULARY = Vocabulary(np.ones(50, dtype=bool), np.arange(50) < 4, None, control_id=44)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), padding=st.integers(0, 3), isolated=st.booleans())
def test_each_token_but_the_last_of_its_text_has_the_next_as_target(lengths, padding, isolated):
    n = sum(lengths) + padding
    ids, real = np.arange(4, 4 + n)[None], (np.arange(n) < n - padding)[None]
    documents = np.repeat(np.arange(len(lengths) + 1), [*lengths, padding])[None]
    sequences = Sequences(np.zeros(1, dtype=np.uint64), ids, real, documents if isolated else None)
    batch = objective_of("clm").draw(sequences, VOCABULARY)
    expected = []
    for i in range(n):
        is_last = i + 1 >= n - padding or (isolated and documents[0, i] != documents[0, i + 1])
        expected.append(-1 if is_last else 4 + i + 1)
    assert batch["next_ids"].tolist() == [expected]
    assert objective_of("clm").target_ids(batch).tolist() == [token for token in expected if token >= 0]
    assert ("document_ids" in batch) == isolated


def test_a_control_code_begins_each_sequence_and_is_not_predicted():
    objective = objective_of({"name": "clm", "control": True})
    assert objective.tokens_needed(8, VOCABULARY) == 7
    ids, documents = np.array([[5, 6, 7], [8, 9, 10]]), np.array([[0, 0, 1], [0, 1, 1]])
    sequences = Sequences(np.zeros(2, dtype=np.uint64), ids, np.ones((2, 3), dtype=bool), documents)
    batch = objective.draw(sequences, VOCABULARY)
    assert batch["input_ids"].tolist() == [[44, 5, 6, 7], [44, 8, 9, 10]]
    assert batch["next_ids"].tolist() == [[5, 6, -1, -1], [8, -1, 10, -1]]
    assert batch["document_ids"].tolist() == [[0, 0, 0, 1], [0, 0, 1, 1]]


def test_the_code_is_the_name_of_each_dataset_of_a_mixture(tmp_path, corpus_files, save_word_tokenizer):
    tokenizer = save_word_tokenizer(tmp_path / "tokenizer", 20)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(" ".join(f"w{(i + j) % 20}" for j in range(30)) for i in range(20)))
    for name in ("w3", "w5", "w3 w5", ""):
        options = BuildOptions(provenance=Provenance(names=[name] * bool(name)))
        build_dataset([str(text)], tokenizer, tmp_path / f"data-{name}", options, show_progress=False)
    objective = objective_of({"name": "clm", "control": True})
    parts = [(tmp_path / "data-w3", None), (tmp_path / "data-w5", None)]
    batch = open_datasets(parts, seed=0, seq_length=8, objective=objective).consecutive(0, 4)
    assert sorted(batch["input_ids"][:, 0].tolist()) == [8, 8, 10, 10]  # w0 has the id 5
    assert batch["input_ids"].shape == (4, 8)
    for name in ("w3 w5", ""):
        data = open_datasets([(tmp_path / f"data-{name}", None)], seed=0, seq_length=8)
        assert data.vocabulary.control_id is None
