"""Programs that the tests on several hosts call, and the packages of Debian and Ubuntu that have them.

``python -m tests.cluster.packages`` installs those that are missing, where it may: as root, with apt-get. Where it may not,
or fails, it says why; the exit code is 0 all the same, because the tests then say what they lack.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence

PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "pdsh": "pdsh",
    "mpirun": "openmpi-bin",
    "srun": "slurm-wlm",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "munged": "munge",
}
CLUSTER = ("ip", "tc", "unshare", "nsenter", "ssh", "ssh-keygen", "sshd", "pdsh")


def missing_programs(names: Sequence[str]) -> list[str]:
    """Those that are not on PATH, each with its package."""
    return [f"{name} is missing (Debian package {PACKAGES[name]})" for name in names if not shutil.which(name)]


def obstacle(packages: Sequence[str]) -> str:
    """Installs packages; returns why that could not be, or nothing."""
    if os.geteuid() != 0:
        return "only root may install them"
    if not shutil.which("apt-get"):
        return "there is no apt-get"
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["apt-get", "--quiet=2", *arguments], env=quiet, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode:
            said = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines()
            return f"apt-get {arguments[0]} failed: {said[0] if said else done.returncode}"
    return ""


def main() -> None:
    packages = sorted({package for name, package in PACKAGES.items() if not shutil.which(name)})
    if packages:
        print(f"Installing for the tests on several hosts: {' '.join(packages)} ...", flush=True)
        why = obstacle(packages)
        print(f"not installed: {why}" if why else "installed", flush=True)


if __name__ == "__main__":
    main()
