"""Values of the command line: flags and --set, in place of a recipe's."""

import json
import sys

import pytest

from mpnet_ds.config.arguments import build_parser, overrides_of, recipe_of
from mpnet_ds.config.foreign_names import MEANING, OTHERWISE, PROGRAM_FLAGS, RECIPE_KEYS
from mpnet_ds.config.overrides import FLAGS
from mpnet_ds.config.recipe import Recipe, load_recipe
from mpnet_ds.errors import UserError
from mpnet_ds.objectives import OBJECTIVES
from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.validation import keys_of

KEYS = [*keys_of(Recipe), *keys_of(MPNet, "objective")]


def parse(*words):
    return build_parser().parse_args(["--deepspeed_config", "zero2", *map(str, words)])


def recipe(*words):
    return recipe_of(parse("--recipe", "mpnet-tiny", *words))


def value_at(section, key: str):
    for name in key.split("."):
        section = getattr(section, name)
    return section


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("optimization.weight_decay=0.25", 0.25),
        ("optimization.weight_decay=1", 1.0),
        ("optimization.betas=[0.5, 0.75]", (0.5, 0.75)),
        ("model.hidden_size=512", 512),
        ("data.isolate_documents=true", True),
        ("data.sample_mode=document", "document"),
        ("description=a = b", "a = b"),
        ("objective.masking.whole_word=false", False),
        ("objective.masking.predicted_fraction=0.3", 0.3),
    ],
)
def test_set_gives_any_value_of_a_recipe(assignment, expected):
    changed = recipe("--set", assignment)
    key = assignment.partition("=")[0]
    assert value_at(changed, key) == expected
    untouched = recipe()
    assert value_at(untouched, key) != expected
    assert {other for other in KEYS if value_at(changed, other) != value_at(untouched, other)} == {
        other for other in KEYS if key == other or key.startswith(f"{other}.")
    }


def test_several_values_after_one_set_and_after_several():
    both = recipe("--set", "run.keep=7", "run.seed=3", "--set", "run.log_interval=5")
    assert (both.run.keep, both.run.seed, both.run.log_interval) == (7, 3, 5)


def test_a_whole_section_is_replaced_before_keys_inside_it_whatever_their_order():
    changed = recipe("--set", "objective.masking.whole_word=false", "objective=mlm")
    assert changed.objective.section()["name"] == "mlm"
    assert changed.objective.masking.whole_word is False
    assert recipe("--objective", "plm", "--set", "objective.masking.whole_word=false").objective.masking.whole_word is False


@pytest.mark.parametrize("key", sorted(FLAGS))
def test_a_flag_means_the_same_as_its_set_and_both_together_are_refused(key):
    flag = FLAGS[key]
    value = {"objective": "mlm", "data.sample_mode": "line", "data.isolate_documents": "true"}.get(key, "9")
    words = [flag] if key == "data.isolate_documents" else [flag, value]
    assert recipe(*words) == recipe("--set", f"{key}={value}") != recipe()
    with pytest.raises(UserError, match=f"{flag} and --set {key} give the same value"):
        recipe(*words, "--set", f"{key}={value}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "optimizaton.eps=1"], "--set: unknown key 'optimizaton'. Did you mean 'optimization'"),
        (["--set", "optimization.epz=1"], "--set: unknown key 'optimization.epz'. Did you mean 'eps'"),
        (["--set", "learning_rate=1"], "unknown key 'learning_rate'. Did you mean 'optimization.learning_rate'"),
        (["--set", "whole_word=true"], "unknown key 'whole_word'. Did you mean 'objective.masking.whole_word'"),
        (["--set", "objective.masking.whole_wrd=true"], r"--set: unknown key 'objective\.masking\.whole_wrd'. Did you"),
        (
            ["--set", "data.seq_length.x=1"],
            r"--set: unknown key 'data\.seq_length\.x': data\.seq_length is 64",
        ),
        (["--set", "optimization.max_steps=many"], r"--set: optimization\.max_steps is \"many\"; it must be a whole number"),
        (["--set", "data.packing=1"], r"--set: data\.packing is 1; it must be true or false"),
        (["--set", "optimization.eps=NaN"], r"--set: optimization\.eps is NaN; it must be a finite number"),
        (["--set", "run=3"], "--set: run is 3; it must be an object"),
        (["--set", "run.keep=1", "run.keep=1"], r"run\.keep: --set gives it twice"),
        (["--objective", "mlm", "--set", "objective.name=plm"], r"--objective and --set objective\.name give the same"),
        (["--set", "run.keep"], "--set run.keep: write KEY=VALUE"),
        (["--set", "run..keep=1"], "write KEY=VALUE"),
        (["--set", "=1"], "write KEY=VALUE"),
        (["--max_steps", "0"], r"--max_steps: optimization\.max_steps is 0; it must be greater than 0\."),
        (["--seed", "-1"], r"--seed: run\.seed is -1; it must be at least 0\."),
        (["--objective", "mlmm"], "--objective: unknown objective 'mlmm'. Did you mean 'mlm'"),
        (["--sample_mode", "lines"], r"--sample_mode: unknown data\.sample_mode \"lines\". Did you mean 'line'"),
    ],
)
def test_mistakes_name_the_flag_and_the_key(words, message):
    with pytest.raises(UserError, match=message) as caught:
        recipe(*words)
    assert len(caught.value.findings) == 1


def test_mistakes_of_the_file_and_of_the_command_line_are_told_apart(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"run": {"keep": 0}}))
    with pytest.raises(UserError) as caught:
        recipe_of(parse("--recipe", path, "--set", "run.seed=-1"))
    assert sorted(caught.value.findings) == [
        "--set: run.seed is -1; it must be at least 0.", f"{path}: run.keep is 0; it must be greater than 0."
    ]  # fmt: skip


def test_a_micro_batch_size_is_exact_however_the_command_line_gives_it():
    for words in (["--micro_batch_size", 4], ["--set", "optimization.micro_batch_size=4"]):
        assert overrides_of(parse(*words))[0].keys() == {"optimization.micro_batch_size"}


def test_names_of_other_programs_lead_to_keys_that_exist():
    assert set(RECIPE_KEYS.values()) <= set(KEYS)
    assert not set(RECIPE_KEYS) & {key.rpartition(".")[2] for key in KEYS}
    known = {flag for action in build_parser()._actions for flag in action.option_strings}
    assert set(PROGRAM_FLAGS.values()) <= known
    assert not {f"--{name}" for name in (*RECIPE_KEYS, *PROGRAM_FLAGS, *OTHERWISE)} & known
    assert set(MEANING) <= set(RECIPE_KEYS)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("per_device_train_batch_size", "Use optimization.micro_batch_size (flag --micro_batch_size)."),
        ("mlm_probability", "Use objective.masking.predicted_fraction."),
        ("warmup_ratio", "Use optimization.warmup_steps, a number of steps."),
        ("num_train_epochs", "Use optimization.max_steps (flag --max_steps), a number of steps"),
        ("gradient_accumulation_steps", "Use optimization.global_batch_size (flag --global_batch_size), the sequences"),
        ("lr_scheduler_type", "The learning rate rises over optimization.warmup_steps"),
        ("resume_from_checkpoint", "Use --resume."),
    ],
)
def test_names_of_transformers_are_answered_with_ours(name, answer, tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"optimization": {name: 1}}))
    for words, place in ((["--recipe", path], f"optimization.{name}"), (["--set", f"{name}=1"], name)):
        with pytest.raises(UserError) as caught:
            recipe_of(parse(*words))
        assert f"unknown key '{place}'. {answer}" in str(caught.value)
    for flag in (f"--{name}", f"--{name.replace('_', '-')}"):
        with pytest.raises(SystemExit) as ended:
            parse(flag, "1")
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: unrecognized arguments: {flag} 1. {answer}")
        assert said.count("\n") == 1


@pytest.mark.parametrize("key", ["optimization.weight_decay", "objective.masking.whole_word"])
def test_a_value_of_a_recipe_without_a_flag_is_answered_with_its_set(key, capsys):
    with pytest.raises(SystemExit):
        parse(f"--{key.rpartition('.')[2]}", "0.1")
    assert f"Write --set {key}=VALUE." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "findings"),
    [
        (["--deepspeed_config=z", "--local_rank=0"], []),
        (["--deepspeed_config", "z", "--local-rank=1"], []),  # of torch.distributed.launch
        (["--max_stepz", "3"], ["required: --deepspeed_config", "--max_stepz 3. Did you mean --max_steps?"]),
        (["--deepspeed_confg", "z"], ["--deepspeed_confg z. Did you mean --deepspeed_config?"]),
        (["--deepspeed", "z.json"], ["--deepspeed z.json. Write --deepspeed_config z.json."]),
        (["--deepspeed=z.json"], ["--deepspeed=z.json. Write --deepspeed_config z.json."]),
        (["--deepspeed", "--deepspeed_config", "z"], ["--deepspeed. Leave it out"]),
        (["--deepspeed_config", "z", "--num_gpus", "2", "--nproc-per-node=2"],
         ["--num_gpus 2. It is for the launcher", "--nproc-per-node=2. It is for the launcher"]),
        (["--seed", "x", "--deepspeed_config", "z", "--max_steps", "--data", "--learning_rate=y", "--compile=1", "word"],
         ["--seed: invalid int value: 'x'", "--max_steps: expected one", "--data: expected at least one",
          "--learning_rate: invalid float value: 'y'", "--compile: ignored explicit argument '1'", "arguments: word"]),
    ],
)  # fmt: skip
def test_all_mistakes_of_a_command_line_are_found_and_the_rest_is_understood(words, findings):
    given, found = build_parser().examine([*words, "--keep", "7"])
    assert given.keep == 7
    assert len(found) == len(findings), found
    assert all(text in "\n".join(found) for text in findings), found


PLUGIN = """
from mpnet_ds.objectives import register
from mpnet_ds.objectives.mlm import MLM

@register
class Echo(MLM):
    name = "echo-of-a-plugin"
"""


@pytest.mark.parametrize("place", ["run.plugins=my_echo", 'run.plugins=["my_echo"]'])
def test_a_plugin_registers_an_objective_before_recipes_are_read(place, tmp_path, monkeypatch):
    (tmp_path / "my_echo.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_echo", raising=False)
    monkeypatch.setitem(OBJECTIVES, "echo-of-a-plugin", MPNet)  # so that it is gone after the test
    changed = recipe("--objective", "echo-of-a-plugin", "--set", place, "objective.masking.whole_word=false")
    assert type(changed.objective).__module__ == "my_echo"
    assert changed.objective.section()["name"] == "echo-of-a-plugin"
    assert changed.objective.masking.whole_word is False
    assert changed.run.plugins == ("my_echo",)
    assert json.loads(json.dumps(changed.as_json()))["run"]["plugins"] == ["my_echo"]


@pytest.mark.parametrize("name", ["no_such_module", "no_such.module", ".", "json.no_such"])
def test_a_plugin_that_does_not_exist_is_named(name):
    with pytest.raises(UserError, match=r"--set: run\.plugins: no module '.*'. Modules are looked for"):
        recipe("--set", f"run.plugins={name}")


def test_plugins_of_another_type_are_refused():
    with pytest.raises(UserError, match=r"run\.plugins is 3; it must be a list"):
        recipe("--set", "run.plugins=3")


def test_recipes_without_changes_are_those_of_their_files():
    assert recipe() == load_recipe("mpnet-tiny")


def test_without_a_recipe_data_train_the_published_base_and_nothing_trains_the_demo():
    assert recipe_of(parse()) == load_recipe("mpnet-tiny")
    base = recipe_of(parse("--data", "my-data"))
    assert base == load_recipe("mpnet-base")
    rows, plan = base.data, base.optimization
    assert (rows.seq_length, rows.sample_mode) == (512, "stream")
    assert (plan.max_steps, plan.global_batch_size) == (125_000, 256)
    assert base.run.keep == 2
