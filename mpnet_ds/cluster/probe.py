"""Facts of the host on which it runs, as dicts that can be written as JSON. Looks only, changes nothing."""

import hashlib
import importlib
import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("mpnet_ds", "numpy", "torch", "deepspeed", "transformers", "tokenizers")
SHORT = 16  # digits of a checksum


def look(data: list[str], output_dir: str, verify_data: bool) -> dict:
    """Facts that need no library.

    Args:
        data: dataset folders.
        output_dir: where checkpoints will go; need not exist.
        verify_data: read every byte of the data.
    Returns:
        ``machine``, the same for two names of one machine; ``versions``, name → what must be the same on all hosts;
        ``problems``, what is wrong anyhow; ``code`` and ``data``, file → start of its sha256, of the package and each dataset;
        ``code_folder`` and ``changed``, files there that git calls changed; ``cores``; ``disk``; ``addresses``, in the order
        of ``hostname -I``, of which DeepSpeed's launcher takes the first for rank 0.
    """
    package = find_spec("mpnet_ds")
    folder = Path(package.origin).parent if package else None
    git = ("git", "--no-optional-locks")  # on a shared file system all hosts ask at the same time
    revision, changed = output_of(*git, "rev-parse", "HEAD"), output_of(*git, "status", "--porcelain", "--untracked-files=no")
    versions = {"Python": platform.python_version()} | ({"the git revision": revision[:12]} if revision else {})
    datasets = {name: dataset_of(Path(name), verify_data) for name in data if package}
    versions |= {f"the tokenizer of dataset {name}": d["tokenizer"] for name, d in datasets.items() if "tokenizer" in d}
    return {
        "machine": _machine(),
        "versions": versions,
        "problems": [dataset["problem"] for dataset in datasets.values() if "problem" in dataset],
        "code": checksums_of_code(folder) if folder else {},
        "code_folder": str(folder),
        "changed": [line[3:] for line in changed.splitlines()],
        "data": {name: dataset["files"] for name, dataset in datasets.items() if "files" in dataset},
        "cores": limited_cores(len(os.sched_getaffinity(0)), Path("/sys/fs/cgroup")),
        "disk": disk_of(Path(output_dir)),
        "addresses": output_of("hostname", "-I").split(),
    }


def output_of(*command: str) -> str:
    """What a command prints; nothing where it is not installed, fails or hangs."""
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 20}
    try:
        return subprocess.run(command, check=True, **options).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _machine() -> str:
    """The machine's boot, and the network that this process sees: a container with a network of its own is a host."""
    boot, network = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/net")
    own_boot = boot.read_text().strip() if boot.exists() else platform.node()
    return f"{own_boot} {network.stat().st_ino if network.exists() else 0}"


def checksums_of_code(folder: Path) -> dict[str, str]:
    """File → start of its sha256, for all Python and JSON files below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".json") and path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:SHORT] for path in paths}


def limited_cores(cores: int, control_group: Path) -> int:
    """``cores``, or fewer where a container's ``cpu.max`` (or version 1's quota) grants less; at least 1."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        paths = [control_group / name for name in names]
        if all(path.is_file() for path in paths):
            quota, period = " ".join(path.read_text() for path in paths).split()[:2]
            if quota.isdigit() and int(period) > 0:
                return max(1, min(cores, int(quota) // int(period)))
    return cores


def disk_of(folder: Path) -> dict:
    """``folder`` (the nearest one that exists), ``free`` bytes and whether this user may write there."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(nearest).free
    return {"folder": str(nearest), "free": free, "is_writable": os.access(nearest, os.W_OK | os.X_OK)}


def dataset_of(folder: Path, verify_data: bool) -> dict:
    """``tokenizer`` and ``files`` (each with the start of its sha256; ``holdout/…`` too) of a dataset, or its ``problem``.

    The checksums are those of the manifest, held against the sizes of all files; with ``verify_data`` against every byte.
    """
    try:
        from mpnet_ds.data.manifest import HOLDOUT, DatasetManifest
        from mpnet_ds.data.verify import verify

        manifests = {"": DatasetManifest.load(folder)}
        if (folder / HOLDOUT).is_dir():
            manifests[f"{HOLDOUT}/"] = DatasetManifest.load(folder / HOLDOUT)
        for prefix, manifest in manifests.items():
            manifest.check_sizes(folder / prefix)
        problems = verify(folder, show_progress=False).problems if verify_data else []
    except (ImportError, OSError, ValueError) as error:
        problems = list(getattr(error, "findings", [str(error)]))  # of a UserError
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return {"problem": f"dataset {folder}: {problems[0]}{more}"}
    shards = [(f"{prefix}{shard.name}", shard.files) for prefix, m in manifests.items() for shard in m.shards]
    files = {f"{name}.{suffix}": record.sha256[:SHORT] for name, own in shards for suffix, record in own.items()}
    return {"tokenizer": manifests[""].tokenizer_fingerprint, "files": files}


def import_libraries(names: list[str]) -> dict:
    """``libraries``, name → version, ``problems`` of those that cannot be imported, and ``gpus`` (None: unknown).

    One that ends the process is the last that is named on standard error.
    """
    libraries, problems, gpus = {}, [], None
    for name in names:
        print(f"importing {name}", file=sys.stderr, flush=True)
        try:
            library = importlib.import_module(name)
            libraries[name] = str(library.__version__)
            if name == "torch":
                gpus = [_describe_gpu(library, number) for number in range(library.cuda.device_count())]
                libraries |= {"CUDA": library.version.cuda} if library.version.cuda else {}
                if gpus and library.distributed.is_nccl_available():
                    libraries["NCCL"] = ".".join(map(str, library.cuda.nccl.version()))
        except (Exception, SystemExit) as error:  # whatever a broken installation raises
            problems.append(f"cannot import {name}: {type(error).__name__}: {error} ({sys.executable})")
    return {"libraries": libraries, "problems": problems, "gpus": gpus}


def _describe_gpu(torch, number: int) -> dict:
    """``name``, ``memory`` in bytes, and how much of it is ``free``, not taken by others."""
    free, total = torch.cuda.mem_get_info(number)
    return {"name": torch.cuda.get_device_name(number), "memory": total, "free": free}
