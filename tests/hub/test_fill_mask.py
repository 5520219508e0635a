"""The likeliest words for a mask, from our tool and from transformers' own pipeline."""

import io

import pytest
from transformers import GPT2Config

from mpnet_ds.errors import UserError
from mpnet_ds.hub.fill_mask import top_words
from mpnet_ds.programs import fill_mask

SENTENCE = "return the <mask> of the list."


def test_top_words_are_those_of_the_fill_mask_pipeline(exported):
    from transformers import pipeline

    expected = pipeline("fill-mask", model=str(exported))(SENTENCE, top_k=5)
    found = top_words(exported, SENTENCE)
    assert [round(probability, 5) for _, probability in found] == [round(row["score"], 5) for row in expected]
    tokens = pipeline("fill-mask", model=str(exported)).tokenizer.convert_tokens_to_ids([word for word, _ in found])
    assert tokens == [row["token"] for row in expected]


def test_sentences_come_from_standard_input_too(exported, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{SENTENCE}\n\n"))
    monkeypatch.setattr("sys.argv", ["fill_mask", str(exported), "--top", "1"])
    fill_mask.main()
    said = capsys.readouterr().out.splitlines()
    (word, probability) = top_words(exported, SENTENCE, 1)[0]
    assert said == [SENTENCE, f"    {word} {probability:.0%}"]


def test_a_causal_model_is_refused(tmp_path):
    GPT2Config(n_layer=1, n_embd=8, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a gpt2, which predicts what follows and fills no masks"):
        top_words(tmp_path, SENTENCE)


def test_there_is_one_mask(exported):
    with pytest.raises(UserError, match="must have exactly one <mask>"):
        top_words(exported, "no mask here")


def test_more_words_than_the_vocabulary_has_are_refused(exported, program):
    assert len(top_words(exported, SENTENCE, 999)) == 999
    for count in (0, -3, 1000):
        with pytest.raises(UserError, match=f"{count} words requested; the vocabulary of .* has 999"):
            program("fill_mask", exported, SENTENCE, "--top", count)
