"""run.json keeps every start of a run, says what changed, and which of them made the steps that count."""

import copy
import json
from types import SimpleNamespace

import pytest

from mpnet_ds.errors import UserError
from mpnet_ds.run import history
from mpnet_ds.run_record import read_record, starts_of, stretches_of

IDENTITY = {"seed": 0}
SETTINGS = {
    "init_from": None,
    "base_model": None,
    "recipe": {"optimization": {"learning_rate": 0.003, "betas": (0.9, 0.98)}},
    "deepspeed_config": {"optimizer": {"params": {"lr": 0.003}}, "gradient_clipping": 1.0},
    "world_size": 1,
    "hosts": {"a": 1},
    "versions": {"torch": "2.12"},
    "identity": IDENTITY,
}


def start(output, step, settings, folder=None) -> dict:
    """One more start, from a checkpoint of ``folder`` if ``step`` is not 0; the changes that it says."""
    output.mkdir(exist_ok=True)
    checkpoint = (folder or output) / "checkpoints" / f"step-{step:08d}" if step else None
    point = SimpleNamespace(output=output, checkpoint=checkpoint, identity=IDENTITY, step=step)
    earlier = history.earlier_starts(point)
    changes = history.changes_since(earlier, settings, step)
    history.write(output, history.continued(earlier, settings, point, changes))
    return changes


def changed(**values) -> dict:
    return copy.deepcopy(SETTINGS) | values


def with_rate(rate: float, **values) -> dict:
    settings = changed(**values)
    settings["recipe"]["optimization"]["learning_rate"] = settings["deepspeed_config"]["optimizer"]["params"]["lr"] = rate
    return settings


def test_every_start_is_kept_with_what_changed_since_the_steps_that_it_continues(tmp_path):
    run = tmp_path / "run"
    assert start(run, 0, SETTINGS) == {}
    assert start(run, 20, SETTINGS) == {}, "nothing that differs in the file's form only"
    rate = {"optimization.learning_rate": [0.003, 0.001]}
    assert start(run, 30, with_rate(0.001)) == rate, "DeepSpeed's lr follows from the recipe's"
    moved = changed(world_size=2, hosts={"b": 2}, versions={"torch": "2.13"}, zero_stage=3)
    moved["deepspeed_config"]["gradient_clipping"] = 0.5
    expected = {"world_size": [1, 2], "hosts": [{"a": 1}, {"b": 2}], "versions.torch": ["2.12", "2.13"]}
    expected |= {"deepspeed_config.gradient_clipping": [1.0, 0.5]}
    assert start(run, 25, moved) == expected, "compared with what made step 25; a value that was not recorded is no change"
    history.end(run, 40)
    record = read_record(run)
    assert [(one["from_step"], one["to_step"]) for one in record["starts"]] == [(0, 20), (20, 30), (30, 30), (25, 40)]
    assert record["starts"][2]["recipe"]["optimization"]["learning_rate"] == 0.001, "withdrawn, and kept"
    assert record["world_size"] == 2
    assert [(part.first, part.last) for part in stretches_of(starts_of(record), 40)] == [(0, 20), (20, 25), (25, 40)]
    assert [(part.first, part.last) for part in stretches_of(starts_of(record), 22)] == [(0, 20), (20, 22)]


def test_lines_for_people_name_both_values():
    changes = {"optimization.learning_rate": [0.003, 0.001], "world_size": [1, 2], "data.license": [None, "mit"]}
    assert history.describe_changes(changes, 20) == [
        "optimization.learning_rate 0.003 → 0.001 from step 20 on",
        "ranks 1 → 2 from step 20 on",
        "data.license unset → mit from step 20 on",
    ]
    assert len(history.describe_changes({str(number): [0, 1] for number in range(100)}, 20)) == history.MOST_LINES + 1


def test_the_base_stays_over_resumes_and_a_start_from_0_takes_its_own(tmp_path):
    run, base = tmp_path / "run", {"init_from": "models/base", "base_model": "base"}
    start(run, 0, changed(init_from="models/never-saved", base_model="never-saved"))
    start(run, 0, changed(**base))  # the first was killed before it saved
    start(run, 10, SETTINGS)
    start(run, 20, SETTINGS)
    record = read_record(run)
    assert [one["init_from"] for one in record["starts"]] == ["models/never-saved", *["models/base"] * 3]
    assert {key: record[key] for key in base} == base


def test_a_run_of_an_older_version_and_one_from_another_folder_continue_their_history(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "run.json").write_text(json.dumps(changed(arguments={"init_from": "perhaps unused"})))
    rate = {"optimization.learning_rate": [0.003, 0.001]}
    assert start(new, 10, with_rate(0.001), folder=old) == rate
    assert start(new, 10, with_rate(0.001), folder=old) == rate, "the same command, after a kill before the first save"
    record = read_record(new)
    assert [one.get("from_step") for one in record["starts"]] == [None, 10, 10]
    assert [(part.first, part.last) for part in stretches_of(starts_of(record), 12)] == [(0, 10), (10, 12)]
    assert record["init_from"] is None
    assert "starts" not in json.loads((old / "run.json").read_text())


def test_a_key_of_the_model_that_an_older_version_did_not_have_is_no_change(tmp_path):
    older, now = changed(), changed()
    older["recipe"]["model"] = {"hidden_size": 32}
    now["recipe"]["model"] = {"hidden_size": 32, "start": "usual", "start_strength": None}
    start(tmp_path / "run", 0, older)
    assert start(tmp_path / "run", 10, now) == {}


def test_a_checkpoint_of_another_folder_brings_its_own_history_or_none(tmp_path):
    """Also into a folder whose own steps it replaces."""
    one, other, bare = (tmp_path / name for name in ("one", "other", "bare"))
    start(one, 0, with_rate(0.9))
    start(other, 0, changed(init_from="base", base_model="base"))
    assert start(one, 60, with_rate(0.001), folder=other) == {"optimization.learning_rate": [0.003, 0.001]}
    record = read_record(one)
    assert (record["init_from"], len(record["starts"])) == ("base", 3)
    made = [(part.start["output_dir"], part.first, part.last) for part in stretches_of(record["starts"], 70)]
    assert made == [(str(other), 0, 60), (str(one), 60, 70)]
    assert start(one, 80, SETTINGS, folder=bare) == {}, "what the checkpoint was made with is not known"
    assert read_record(one)["init_from"] is None


@pytest.mark.parametrize(
    "content", ["[]", '{"starts": 5}', '{"starts": ["a"]}', "{", '{"starts": [{"from_step": "3"}]}', '{"identity": null}']
)
def test_a_damaged_record_is_said(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        read_record(tmp_path)
