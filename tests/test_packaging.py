"""The package as a user installs it: everything that a run needs is in the wheel."""

import shutil
from pathlib import Path

import pytest

from tests.environments import PIP, ended_well, make_environment
from tests.runs import ROOT

SOURCES = ("mpnet_ds", "ds_configs", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A virtual environment with the wheel in it and the dependencies of this one, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"  # building leaves folders behind, and old ones would get into the wheel
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    ended_well(*PIP, "wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return make_environment(folder / "env", "--no-deps", "--no-index", "--ignore-installed", wheel)


@pytest.mark.long
def test_the_demo_of_an_installed_package_runs_in_an_empty_folder(installed, tmp_path):
    said = ended_well(installed / "mpnet-ds", "demo", "--max_steps", 3, cwd=tmp_path)
    assert " --module mpnet_ds.training.pretrain --deepspeed_config zero2" in said
    assert "== Done" in said
    assert (tmp_path / "runs" / "demo" / "model" / "config.json").is_file()
    again = ended_well(installed / "mpnet-ds", "demo", "--max_steps", 3, cwd=tmp_path)
    assert again.count("is there already") == 5


@pytest.mark.long
def test_an_installed_package_has_every_file_of_the_checkout_and_stands_alone(installed, tmp_path):
    place = Path(ended_well(installed / "python", "-c", "import mpnet_ds; print(mpnet_ds.__file__)", cwd=tmp_path).strip())
    assert place.is_relative_to(installed.parent)
    assert files_below(place.parent) == files_below(ROOT / "mpnet_ds") | {
        Path("ds_configs", name) for name in files_below(ROOT / "ds_configs")
    }


def files_below(folder: Path) -> set[Path]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path for path in paths if path.suffix != ".pyc"}
