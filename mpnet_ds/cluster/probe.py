"""Facts of the host on which it runs, as one dict that can be written as JSON. Looks only, changes nothing.

machine       the same for two names of one machine
versions      name → what must be the same on all hosts: Python, libraries, CUDA, NCCL, git revision, tokenizers
files         "the code of mpnet_ds", or a dataset → file → start of its sha256: they must be the same as well
problems      what is wrong whatever the other hosts have
changed       files that differ from the git revision
gpus, cores   what ranks can use; gpus is None where torch cannot tell
disk          where checkpoints will go
addresses     in the order of ``hostname -I``, of which DeepSpeed's launcher takes the first for rank 0
"""

import hashlib
import importlib
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

SHORT = 16  # digits of a checksum


def look(data: list[str], output_dir: str, verify_data: bool, libraries: list[str]) -> dict:
    """All facts, with these datasets (``verify_data`` reads every byte of them), output folder and libraries."""
    facts = import_libraries(libraries) | {"files": {}}
    facts["versions"]["Python"] = platform.python_version()
    if package := find_spec("mpnet_ds"):
        folder = Path(package.origin).parent
        facts["versions"]["the folder of mpnet_ds"] = str(folder)
        facts["files"]["the code of mpnet_ds"] = checksums_of_code(folder)
        for name in data:
            dataset = dataset_of(Path(name), verify_data)
            facts["versions"] |= dataset["versions"]
            facts["files"] |= dataset["files"]
            facts["problems"] += dataset["problems"]
    git = ("git", "--no-optional-locks")  # on a shared file system all hosts ask at the same time
    facts["versions"]["the git revision"] = output_of(*git, "rev-parse", "HEAD")[:12]
    changed = output_of(*git, "status", "--porcelain", "--untracked-files=no").splitlines()
    return facts | {
        "machine": Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/net"),
        "versions": {name: version for name, version in facts["versions"].items() if version},
        "changed": [line[3:] for line in changed],
        "cores": usable_cores(),
        "disk": disk_of(Path(output_dir)),
        "addresses": output_of("hostname", "-I").split(),
    }


def output_of(*command: str) -> str:
    """What a command prints; nothing where it is not installed, fails or hangs."""
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 20}
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, check=True, **options).stdout
    return ""


def checksums_of_code(folder: Path) -> dict[str, str]:
    """File → start of its sha256, for all Python and JSON files below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".json") and path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:SHORT] for path in paths}


def usable_cores() -> int:
    """Count the cores that ranks may use at a time; without this project those on which they may run."""
    try:
        from mpnet_ds.machine import available_cores
    except ImportError:
        return len(os.sched_getaffinity(0))
    return available_cores()


def disk_of(folder: Path) -> dict:
    """``folder`` (the nearest one that exists), ``free`` bytes and whether this user may write there."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    is_writable = os.access(nearest, os.W_OK | os.X_OK)
    return {"folder": str(nearest), "free": shutil.disk_usage(nearest).free, "is_writable": is_writable}


def dataset_of(folder: Path, verify_data: bool) -> dict:
    """``versions``, ``files`` and ``problems`` of a dataset and its holdout.

    The checksums are those of the manifest, held against the sizes of all files; with ``verify_data`` against every byte.
    """
    name = f"dataset {folder}"
    try:
        from mpnet_ds.data.storage.manifest import HOLDOUT, DatasetManifest
        from mpnet_ds.data.storage.verify import verify

        folders = [folder, *(path for path in (folder / HOLDOUT,) if path.is_dir())]
        manifests = [(each, DatasetManifest.load(each)) for each in folders]
        for each, manifest in manifests:
            manifest.check_sizes(each)
        problems = verify(folder, show_progress=False).problems if verify_data else []
    except (ImportError, OSError, ValueError) as error:
        problems = getattr(error, "findings", [str(error)])  # of a UserError
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return {"versions": {}, "files": {}, "problems": [f"{name}: {problems[0]}{more}"]}
    records = [(path, record) for each, manifest in manifests for _, path, record in manifest.files(each)]
    files = {str(path.relative_to(folder)): record.sha256[:SHORT] for path, record in records}
    versions = {f"the tokenizer of {name}": manifests[0][1].tokenizer_fingerprint}
    return {"versions": versions, "files": {name: files}, "problems": []}


def import_libraries(names: list[str]) -> dict:
    """``versions``, ``problems`` of those that cannot be imported, and ``gpus``, with their memory in bytes.

    One that ends this process is the last that is named on standard error.
    """
    versions, problems, gpus = {}, [], None
    for name in names:
        print(f"importing {name}", file=sys.stderr, flush=True)
        try:
            library = importlib.import_module(name)
            versions[name] = str(library.__version__)
            if name == "torch":
                gpus = [_describe_gpu(library, number) for number in range(library.cuda.device_count())]
                versions["CUDA"] = library.version.cuda
                versions["NCCL"] = gpus and library.distributed.is_nccl_available() and str(library.cuda.nccl.version())
        except (Exception, SystemExit) as error:  # whatever a broken installation raises
            problems.append(f"cannot import {name}: {type(error).__name__}: {error} ({sys.executable})")
    return {"versions": versions, "problems": problems, "gpus": gpus}


def _describe_gpu(torch, number: int) -> dict:
    free, total = torch.cuda.mem_get_info(number)
    return {"name": torch.cuda.get_device_name(number), "memory": total, "free": free}
