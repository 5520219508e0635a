"""Steps, micro-batches, ranks and evaluations in which no token is predicted: documents of one token, one a sequence."""

import pytest

from mpnet_ds.checkpoint.store import verify
from mpnet_ds.data import build_dataset
from tests.runs import RECIPE, ROOT, pretrain_all
from tests.training.faulty_runs import events

ONE_A_SEQUENCE = [
    *("--deepspeed_config", ROOT / "ds_configs" / "zero2.json", "--recipe", RECIPE),
    *("--set", "data.sample_mode=document", "data.packing=false"),
]


@pytest.fixture(scope="module")
def nothing(made_once, tokenizer_folder, tmp_path_factory):
    """A dataset of 40 documents of one token: with the special tokens three, and round(0.15 × 3) = 0 are predicted."""
    text = tmp_path_factory.mktemp("one") / "words.txt"
    text.write_text("\n\n".join("abcdefgh" * 5))
    return made_once(
        "one-token-documents", lambda folder: build_dataset([text], tokenizer_folder, folder, show_progress=False)
    )


def test_a_run_without_a_predicted_token_gives_up(nothing, tmp_path):
    arguments = ["--data", nothing, "--eval_data", nothing, *ONE_A_SEQUENCE]
    settings = {"limit": ["run.max_skipped=3"], "short": ["optimization.max_steps=2", "run.eval_interval=1"]}
    done = pretrain_all(tmp_path, {tmp_path / name: [*arguments, *more] for name, more in settings.items()}, 1)
    limit, short = done[tmp_path / "limit"], done[tmp_path / "short"]
    for run, steps, words in ((limit, 3, "the last 3 steps had no token to predict"), (short, 2, "all steps had no token")):
        assert run.code == 1
        assert [(e["step"], e["what"], e["in_a_row"]) for e in events(run, "skipped")] == [
            (step, "targets", step) for step in range(1, steps + 1)
        ]
        assert f"stopped at step {steps}: {words}" in run.err
        assert "Done" not in run.out
        assert "nan" not in run.out.lower()
        assert run.losses == run.eval_losses == []
        verify(run.folder / "inspection" / "checkpoints" / f"step-{steps:08}")
    assert "loss       –" in limit.out
    assert [e["step"] for e in events(short, "not_evaluated")] == [0, 1]
    assert "no validation loss" in short.err


def test_sequences_without_a_predicted_token_change_no_loss_and_no_norm(nothing, dataset_folder, tmp_path):
    data = ["--data", f"{nothing}:0.6", f"{dataset_folder}:0.4", *ONE_A_SEQUENCE, "optimization.max_steps=4"]
    one = pretrain_all(tmp_path, {tmp_path / "whole": data, tmp_path / "parts": [*data, "--micro_batch_size", 1]}, 1)
    two = pretrain_all(tmp_path, {tmp_path / "ranks": [*data, "--micro_batch_size", 1]}, 2)
    whole, parts, ranks = one[tmp_path / "whole"], one[tmp_path / "parts"], two[tmp_path / "ranks"]
    assert whole.code == parts.code == ranks.code == 0
    assert len(whole.losses) == 4
    for run in (parts, ranks):
        assert run.losses == pytest.approx(whole.losses, abs=1e-5)
        assert [m["grad_norm"] for m in run.metrics if "loss" in m] == pytest.approx(
            [m["grad_norm"] for m in whole.metrics if "loss" in m], rel=1e-4
        )
