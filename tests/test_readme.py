"""What the pages say is so: links and anchors lead somewhere, commands parse, files of the tree are there."""

import ast
import json
import re
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from mpnet_ds.config.arguments import recipe_of
from mpnet_ds.config.deepspeed_config import load_deepspeed_config
from mpnet_ds.config.recipe import RECIPES, Recipe, load_recipe, recipe_from_dict
from mpnet_ds.models.families import FAMILIES
from mpnet_ds.objectives import OBJECTIVES
from mpnet_ds.objectives.model_section import MPNetSection, section_class
from mpnet_ds.programs.cli import PROGRAMS
from mpnet_ds.validation import keys_of
from tests.runs import ROOT
from tests.test_layout import ROOMS

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("launch/**/*.md")]
}
OTHER_PROGRAMS = {"docker", "kubectl", "pytest", "source", "tensorboard"}
"""Programs that are not this project's: what they take is not looked at."""
OTHER_FLAGS = {"--num_gpus", "--include", "--force_multi", "--module", "--hostfile", "--array", "--follow", "--logdir"}
OTHER_FLAGS |= {"--max_restarts", "--nnodes"}
"""Flags of such programs and of launchers."""
PAGE = pytest.mark.parametrize("page", sorted(PAGES))


def blocks(page: str, language: str) -> list[str]:
    """Content of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Commands of a page's bash blocks, as words, without variables that are set before them."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [shorter for line in words if (shorter := [word for word in line if not re.match(r"[A-Z_]+=", word)])]


ALL_COMMANDS = [(page, command) for page in sorted(PAGES) for command in commands(page)]


@cache
def parser_of(program: str):
    """The parser of a program, by the name of its file."""
    return import_module(f"mpnet_ds.programs.{program}").build_parser()


def check_command(words: list[str]) -> None:
    """Let the program's own parser read a command; what launchers take is passed over."""
    name, *rest = words
    if name in ("bash", "sbatch"):
        number = next(i for i, word in enumerate(rest) if word.endswith(".sh"))
        script, rest = rest[number], rest[number + 1 :]
        assert (ROOT / script).is_file(), script
        if script.endswith("supervise.sh"):
            check_command(rest)
        elif rest:
            check_training(rest[rest[0] == "my-hostfile" :])
    elif name == "deepspeed":
        assert "launch/pretrain.py" in rest
        check_training(rest[rest.index("launch/pretrain.py") + 1 :])
    elif name == "python":
        check_script(*rest)
    elif name == "mpnet-ds":
        assert rest[0] in PROGRAMS
        parser_of(rest[0].replace("-", "_")).parse_args(rest[1:])
    elif name == "make":
        assert all(has_target(target) for target in rest if "=" not in target), words
    else:
        assert name in OTHER_PROGRAMS, words


def check_training(arguments: list[str]) -> None:
    """Parse the command that trains, with its recipe and DeepSpeed's JSON where they are shipped."""
    parsed = parser_of("pretrain").parse_args(arguments)
    load_deepspeed_config(ROOT / parsed.deepspeed_config)
    if not (parsed.recipe or "").endswith(".json") and not any("run.plugins" in value for value in parsed.set):
        recipe_of(parsed)


def check_script(script: str, *arguments: str) -> None:
    """Parse a script's command; a benchmark's flags are looked up in the benchmarks' sources."""
    path = ROOT / script
    assert path.is_file(), script
    if path.parent.name == "tools":
        parser_of(path.stem).parse_intermixed_args(arguments)
    else:
        sources = "".join(file.read_text(encoding="utf-8") for file in path.parent.glob("*.py"))
        assert [word for word in arguments if word.startswith("--") and f'"{word}"' not in sources] == []


def has_target(target: str) -> bool:
    """Whether make knows a target."""
    return re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize(
    ("page", "words"), ALL_COMMANDS, ids=[f"{page}-{i}-{words[0]}" for i, (page, words) in enumerate(ALL_COMMANDS)]
)
def test_a_command_is_what_its_program_takes(page, words):
    check_command(words)


def test_there_are_commands_of_every_program():
    scripts = {word for _, words in ALL_COMMANDS for word in words if word.endswith(".py")}
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("tools/*.py")} <= scripts
    assert {words[1] for page, words in ALL_COMMANDS if words[0] == "make"} >= {"demo", "test"}


@PAGE
def test_flags_targets_and_keys_in_the_text_exist(page):
    known = OTHER_FLAGS | {
        flag
        for program in PROGRAMS
        for action in parser_of(program.replace("-", "_"))._actions
        for flag in action.option_strings
    }
    code = re.findall(r"`([^`\n]+)`", prose(page))
    if page != "docs/configuration.md":  # it names keys and flags of others, too
        ours = [
            word for text in code if not text.startswith(("sbatch", "python benchmarks", "make")) for word in text.split()
        ]
        flags = {word.partition("=")[0] for word in ours if re.match(r"--\w", word)}
        assert flags - known - benchmark_flags(prose(page)) == set()
        assert {recipe_key(text) for text in code} - recipe_keys() - {None} == set()
    targets = {target for text in code for target in re.findall(r"^make ([\w-]+)", text)}
    assert {target for target in targets if not has_target(target)} == set()


def benchmark_flags(text: str) -> set[str]:
    """Flags that the benchmarks have, where a page is about them."""
    sources = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("benchmarks/*.py"))
    return set(re.findall(r'"(--\w+)"', sources)) if "bench_" in text else set()


def recipe_key(text: str) -> str | None:
    """The key of a recipe that a piece of code names, if it is one: ``data.packing: false``, ``--set run.keep=3``."""
    found = re.fullmatch(r"(?:--set )?((?:data|model|objective|optimization|run)(?:\.\w+)+)(?:[=:].*)?", text)
    return found[1] if found and found[1].rpartition(".")[2] not in ("json", "py", "md", "jsonl") else None


@cache
def recipe_keys() -> set[str]:
    """Keys of a recipe, those of all objectives and families among them."""
    objectives = {key for objective in OBJECTIVES.values() for key in keys_of(objective, "objective")}
    sections = (MPNetSection, *map(section_class, FAMILIES))
    return {*keys_of(Recipe), *objectives, "objective.name", *(key for one in sections for key in keys_of(one, "model"))}


@PAGE
def test_links_and_anchors_lead_somewhere(page):
    faults = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page)):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            faults.append(link)
    assert faults == []


@cache
def anchors(path: Path) -> set[str]:
    """Anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@PAGE
def test_python_compiles_and_imports_names_that_are_there(page):
    for code in blocks(page, "python"):
        compile(code, page, "exec")
        for module, names in re.findall(r"^from (mpnet_ds[\w.]*) import (.*)$", code, re.MULTILINE):
            path = ROOT.joinpath(*module.split("."))
            source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
            assert [name for name in names.split(", ") if not re.search(rf"\b{name}\b", source)] == [], module


@PAGE
def test_recipes_in_json_are_valid(page):
    for text in blocks(page, "json"):
        if "plugins" not in (content := json.loads(text)).get("run", {}):
            assert recipe_from_dict({"name": "shown"} | content, page).name == "shown"


def test_the_readme_is_short_and_lists_every_page():
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 150
    assert [page for page in PAGES if page.startswith("docs/") and f"({page})" not in readme] == []


def test_every_promise_of_the_readme_has_tests_that_exist():
    table = PAGES["CONTRIBUTING.md"].partition("| promise | tests |\n")[2].partition("\n\n")[0]
    missing = []
    for row in table.splitlines()[1:]:
        file, named = "", re.findall(r"`([\w/]*(?:\.py)?)::(\w+)`", row)
        missing += [row] if not named or not named[0][0] else []
        for path, name in named:
            file = path or file
            missing += [f"{file}::{name}"] if name not in names_of_tests(file) else []
    assert missing == []


@cache
def names_of_tests(file: str) -> set[str]:
    """Names of the tests of a file below ``tests``."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_tree_of_the_architecture_is_the_package():
    told, folders = set(), []
    for line in blocks("docs/architecture.md", "")[0].splitlines():
        if line.strip():
            name = line.split()[0]
            del folders[(len(line) - len(line.lstrip())) // 4 :]
            if name.endswith("/"):
                folders.append(name)
                assert (ROOT / "".join(folders)).is_dir(), line
            else:
                told.add("".join([*folders, name]))
    package = (ROOT / "mpnet_ds").rglob("*")
    files = [path for path in package if path.suffix in (".py", ".json", ".md") and path.parent != RECIPES]
    there = {str(path.relative_to(ROOT)) for path in files}
    assert {"not there": told - there, "not told": there - told} == {"not there": set(), "not told": set()}


def test_the_table_of_models_is_that_of_the_recipes():
    table = PAGES["docs/models.md"].partition("| recipe | parameters (pieces) |")[2].partition("\n\n")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    told = {row[0]: row[2:6] for row in rows}
    assert told == {path.stem: cells_of(load_recipe(path.stem)) for path in RECIPES.glob("*.json")}


def cells_of(recipe: Recipe) -> list[str]:
    """Family, objective, layout and class of the export of a recipe, as the table of models says them."""
    model, objective = recipe.model, recipe.objective
    special = ["emd"] * (getattr(objective, "head", "") == "emd") + ["control"] * getattr(objective, "control", False)
    layout, model_class = "mpnet", "MPNetForMaskedLM"
    if not isinstance(model, MPNetSection):
        layout, model_class = model.family.layouts[0], model.family.class_name(objective.name == "clm")
    return [model.model_type, ", ".join([objective.name, *special]), layout, model_class]


def test_the_arrows_of_the_architecture_are_those_that_are_tested():
    diagram = blocks("docs/architecture.md", "")[1].splitlines()
    assert diagram == [" · ".join(room.replace(".", "/") for room in line) for line in ROOMS]


def test_the_page_on_adding_a_model_has_the_code_that_is_tested():
    toy = (ROOT / "tests" / "toy.py").read_text(encoding="utf-8").partition('"""\n\n')[2]
    told = [code.strip() for code in blocks("docs/add_a_model.md", "python") if code.strip() in toy]
    assert sorted(part.strip() for part in toy.split("\n\n\n")) == sorted(told)
