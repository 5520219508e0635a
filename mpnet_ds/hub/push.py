"""Upload of an exported folder to the Hugging Face hub."""

from pathlib import Path

from mpnet_ds.errors import UserError


def check_push(name: str) -> None:
    """Raise ``UserError`` unless the hub can be reached by a user who has logged in, before anything is computed."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    _try(name, lambda: validate_repo_id(name))
    _try(name, HfApi().whoami)


def push_to_hub(folder: str | Path, name: str) -> str:
    """Upload a folder as the model ``name``, which is created, private, if there is none; return its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    _try(name, lambda: api.create_repo(name, private=True, exist_ok=True))
    _try(name, lambda: api.upload_folder(repo_id=name, folder_path=Path(folder), commit_message="Export of mpnet_ds"))
    return f"{api.endpoint}/{name}"


def _try(name: str, action) -> None:
    try:
        action()
    except Exception as error:  # of several libraries: no connection, no login, no permission, a bad name
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--push_to_hub {name}: {type(error).__name__}: {reason} (Log in with: hf auth login)") from error
