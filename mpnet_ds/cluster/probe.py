"""Facts of the host on which it runs: versions, devices, code, disk, data, network. Looks only, changes nothing.

Heavy libraries are imported in a process of its own (imports.py), so that one that is missing or broken, or that ends
the process, is a fact like others.
"""

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

import mpnet_ds
from mpnet_ds.cluster.children import Child
from mpnet_ds.errors import UserError

SECONDS_FOR_IMPORTS = 120
SECONDS_FOR_GIT = 20
SHORT = 16  # digits of a checksum


def look(data: list[str], output_dir: str, verify_data: bool) -> dict:
    """All facts that need no other host.

    Args:
        data: dataset folders.
        output_dir: where checkpoints will go; need not exist.
        verify_data: read every byte of the data.
    Returns:
        A dict that can be written as JSON; what cannot be known is None, left out, or has an entry ``error``.
    """
    return {
        "hostname": socket.gethostname(),
        "machine": _machine(),
        "python": platform.python_version(),
        "mpnet_ds": mpnet_ds.__version__,
        "libraries": import_libraries(),
        "code": checksums_of_code(Path(mpnet_ds.__file__).parent),
        "code_folder": str(Path(mpnet_ds.__file__).parent),
        "git": git_state(Path.cwd()),
        "cores": usable_cores(),
        "disk": disk_of(Path(output_dir)),
        "data": {folder: dataset_of(Path(folder), verify_data) for folder in data},
    }


def _machine() -> str:
    """The same for two names of one machine, and for nothing else: its boot, and the network that it sees."""
    boot, network = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/net")
    own_boot = boot.read_text().strip() if boot.exists() else platform.node()
    return f"{own_boot} {network.stat().st_ino if network.exists() else 0}"


def import_libraries() -> dict[str, dict]:
    """Name → ``{"version": …}`` or ``{"error": …}`` of each library; torch also with its devices (see imports.py)."""
    ended = Child("-m", "mpnet_ds.cluster.imports").finish(SECONDS_FOR_IMPORTS)
    entries = [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]
    found = {entry.pop("name"): entry for entry in entries if "name" in entry}
    begun = [entry["begin"] for entry in entries if "begin" in entry]
    if begun and begun[-1] not in found:
        how = f"ended with signal {-ended.code}" if ended.code < 0 else f"ended with exit code {ended.code}"
        how = f"did not end within {SECONDS_FOR_IMPORTS} s" if ended.was_late else how
        found[begun[-1]] = {"error": f"importing it {how}. {ended.last_line}".strip()}
    return found


def checksums_of_code(folder: Path) -> dict[str, str]:
    """File → start of its sha256, for all Python and JSON files below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".json") and path.is_file())
    return {str(path.relative_to(folder)): _sha256(path.read_bytes()) for path in paths}


def git_state(folder: Path) -> dict:
    """``revision`` and ``changed`` (tracked files that differ from it) of the repository around ``folder``, or ``error``."""
    try:
        revision = _git(folder, "rev-parse", "HEAD").strip()
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no").splitlines()
    except FileNotFoundError:
        return {"error": "git is not installed"}
    except subprocess.TimeoutExpired:
        return {"error": f"git did not answer within {SECONDS_FOR_GIT} s"}
    except subprocess.CalledProcessError as error:
        return {"error": next(iter(error.stderr.splitlines()), f"git failed with {error.returncode}")}
    return {"revision": revision, "changed": [line[3:] for line in changed]}


def _git(folder: Path, *words: str) -> str:
    # Without optional locks: on a shared file system all hosts ask at the same time.
    command = ["git", "--no-optional-locks", *words]
    options = {"capture_output": True, "text": True, "check": True, "timeout": SECONDS_FOR_GIT}
    return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, **options).stdout


def usable_cores() -> int:
    """Processor cores that this process may use, a limit of its control group (a container's) included."""
    from mpnet_ds.machine import available_cores

    return limited_cores(available_cores(), Path("/sys/fs/cgroup"))


def limited_cores(cores: int, control_group: Path) -> int:
    """``cores``, or fewer where ``cpu.max`` (or version 1's quota) grants less; at least 1."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        paths = [control_group / name for name in names]
        if all(path.is_file() for path in paths):
            quota, period = " ".join(path.read_text().strip() for path in paths).split()[:2]
            if quota.isdigit() and int(period) > 0:
                return max(1, min(cores, int(quota) // int(period)))
    return cores


def disk_of(folder: Path) -> dict:
    """``folder`` (the nearest one that exists), ``free`` bytes and whether this user may write there."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(nearest).free
    return {"folder": str(nearest), "free": free, "is_writable": os.access(nearest, os.W_OK | os.X_OK)}


def dataset_of(folder: Path, verify_data: bool) -> dict:
    """``checksum``, ``tokenizer`` and ``files`` (each with the start of its checksum) of a dataset, or ``error``.

    The checksums are those of the manifest, held against the sizes of all files; with ``verify_data`` against every byte.
    The holdout's files are named ``holdout/…``.
    """
    from mpnet_ds.data.storage.manifest import HOLDOUT, DatasetManifest
    from mpnet_ds.data.storage.verify import verify

    try:
        manifest = DatasetManifest.load(folder)
        manifests = {"": manifest}
        if (folder / HOLDOUT).is_dir():
            manifests[f"{HOLDOUT}/"] = DatasetManifest.load(folder / HOLDOUT)
        for place, part in manifests.items():
            part.check_sizes(folder / place)
        problems = verify(folder, show_progress=False).problems if verify_data else []
    except UserError as error:
        problems = list(error.findings)
    except OSError as error:
        problems = [f"{error.filename or folder}: {error.strerror}"]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return {"error": problems[0] + more}
    records = {
        f"{place}{shard.name}.{suffix}": record.sha256[:SHORT]
        for place, part in manifests.items()
        for shard in part.shards
        for suffix, record in shard.files.items()
    }
    checksum = _sha256(" ".join(part.checksum for part in manifests.values()).encode())
    return {"checksum": checksum, "tokenizer": manifest.tokenizer_fingerprint, "files": records}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:SHORT]


def addresses() -> list[str]:
    """This host's addresses in the order of ``hostname -I``, of which DeepSpeed's launcher takes the first for rank 0."""
    try:
        answer = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (FileNotFoundError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return []
    return answer.split()


def route(to: str) -> dict:
    """How this host speaks to the others: ``address``, ``interface`` and its ``mtu`` (bytes) and ``speed`` (Mbit/s or 0).

    It is the interface towards the host ``to``, or the first that GLOO_SOCKET_IFNAME names (``wanted``). Further
    ``interfaces``, the names of all; ``leads_to``, what ``to`` stands for here; ``is_own``, whether that is this host.

    Raises:
        UserError: the name is unknown here, or no route leads there.
    """
    from mpnet_ds.ranks.network import find_interface, interfaces, resolve

    found, own = find_interface(to), interfaces()
    wanted = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    found = next((interface for interface in own if interface.name in wanted[:1]), found)
    leads_to = resolve(to).partition("%")[0]
    return {
        "address": found.address,
        "interface": found.name,
        "mtu": found.mtu,
        "speed": found.speed,
        "wanted": wanted,
        "interfaces": list(dict.fromkeys(interface.name for interface in own)),
        "leads_to": leads_to,
        "is_own": ip_address(leads_to).is_loopback or leads_to in {interface.address for interface in own},
    }


def holders_of_port(port: int) -> list[str]:
    """Programs of this host that listen on a port: ``process 4711 (python train.py)``, as far as this user may know."""
    import psutil

    def describe(pids: Iterable[int]) -> Iterable[str]:
        for pid in pids:
            try:
                yield f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:80]})"
            except psutil.Error:
                yield f"process {pid}"

    try:
        listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []
    return list(describe(sorted({each.pid for each in listening if each.laddr.port == port and each.pid})))
