"""docs/configuration.md is made from the code."""

from mpnet_ds.config.document import document, shipped_objectives
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.objectives.model_section import MPNetSection
from mpnet_ds.validation import keys_of
from tests.runs import ROOT


def test_the_page_is_not_stale():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == document(), "run: python -m mpnet_ds.config.document > docs/configuration.md"


def test_every_key_of_a_recipe_has_a_row_with_its_text():
    page = document().splitlines()
    keys = [*keys_of(Recipe), *keys_of(MPNetSection, "model")]
    keys += [key for kind in shipped_objectives().values() for key in keys_of(kind, "objective")]
    sections = {key.rpartition(".")[0] for key in keys} | {"objective", "model"}
    for key in set(keys) - sections:
        (row,) = [line for line in page if line.startswith(f"| `{key}` ")]
        assert len(row.split(" | ")[-1]) > 8, row


def test_types_bounds_and_defaults_are_those_of_the_fields():
    page = document()
    for row in (
        "| `run.seed` (`--seed`) | integer ≥ 0, ≤ 2⁶³ - 1 | `0` | ",
        "| `optimization.betas` | [number ≥ 0, < 1] × 2 | `[0.9, 0.98]` | ",
        '| `data.sample_mode` (`--sample_mode`) | `stream`, `document`, `line` | `"stream"` | ',
        "| `objective.masking.max_ngram` | integer ≥ 1, ≤ 16 | `1` | ",
        "| `data.packing` | true or false | `true` | ",
    ):
        assert row in page
