"""What a user names as a model or a tokenizer → a folder on this machine.

my-model, /data/my-model        a folder
microsoft/mpnet-base            a name of the Hugging Face hub: from its cache, or downloaded into it; HF_HUB_OFFLINE and
                                the hub's other variables count
runs/first                      a run or a checkpoint: its tokenizer; of a model the command that exports it
"""

import re
from pathlib import Path

from mpnet_ds.command_line import invocation
from mpnet_ds.errors import UserError

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
CACHED = "models--"
"""Beginning of the name of a model's folder in the hub's cache: ``models--microsoft--mpnet-base``."""
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"]
MODEL_FILES = ["*config.json", "*.safetensors", "*.safetensors.index.json"]
OLD_MODEL_FILES = ["*pytorch_model*.bin", "*pytorch_model.bin.index.json"]


def locate_model(name: str | Path) -> Path:
    """Return the folder of a model.

    Raises ``UserError`` for a run's folder, with the command that exports it, and for a name that is neither a folder nor in
    the hub's cache while the hub cannot be reached. Other paths are returned as they are.
    """
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file() and _is_run(path):
        command = invocation("convert_to_hf", name, "MODEL")
        raise UserError(f"{name} is a run or checkpoint, not a Hugging Face folder. Export it first: {command}")
    if not is_hub_name(name):
        return path
    folder = _download(str(name), [*MODEL_FILES, *TOKENIZER_FILES], "config.json")
    has_weights = any(folder.rglob("*.safetensors"))
    return folder if has_weights else _download(str(name), [*MODEL_FILES, *OLD_MODEL_FILES, *TOKENIZER_FILES], "config.json")


def model_name(name: str | Path) -> str | None:
    """Return by which name the hub may know a model: its own there, or its folder's; None if that cannot be a name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    path = Path(name)
    if path.exists():
        cached = next((part for part in reversed(path.resolve().parts) if part.startswith(CACHED)), "")
        name = cached.removeprefix(CACHED).replace("--", "/") or path.resolve().name
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return None
    return str(name)


def locate_tokenizer(name: str | Path) -> Path:
    """Return the folder or file of a tokenizer, also of one inside of a run, checkpoint or dataset; errors as above."""
    path = Path(name)
    if not (path / "tokenizer.json").is_file() and (path / "tokenizer" / "tokenizer.json").is_file():
        return path / "tokenizer"
    if not is_hub_name(name):
        return path
    try:
        return _download(str(name), TOKENIZER_FILES, "tokenizer.json")
    except UserError as error:
        raise UserError(f"no tokenizer at {name}. {error} Make one with {invocation('train_tokenizer')}.") from error


def _is_run(path: Path) -> bool:
    return any(any(path.glob(f"{place}manifest.json")) for place in ("", "*/", "checkpoints/*/"))


def is_hub_name(name: str | Path) -> bool:
    """Whether a name may be one of the hub, and is none of a file or folder here."""
    return not Path(name).exists() and HUB_NAME.fullmatch(str(name)) is not None


def _download(name: str, patterns: list[str], necessary: str) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # of several libraries: no connection, no such name, no permission, a snapshot in part
        cached = try_to_load_from_cache(name, necessary)
        if isinstance(cached, str):
            return Path(cached).parent
        raise UserError(
            f"{name} is not a folder here, and as a model of the Hugging Face hub it is neither in the cache nor can it be "
            f"downloaded ({_reason(error)})."
        ) from error


def _reason(error: BaseException) -> str:
    """What lies behind an error of the hub's client, in a line."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".")
