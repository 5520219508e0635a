"""ssh between the hosts of a cluster, with keys and configuration of its own. Nothing of the user's is read or written.

In the hosts' own view of the file system ``ssh`` is a script that adds ``-F`` and the cluster's configuration, wherever it
is called from: a launcher, pdsh, mpirun on another host. ``scp`` and ``rsync`` go through it too.
"""

import shutil
import subprocess
from pathlib import Path

CLIENT = """\
IdentityFile {folder}/key
IdentitiesOnly yes
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
BatchMode yes
"""

SERVER = """\
Port 22
ListenAddress 0.0.0.0
HostKey {folder}/{name}.key
PidFile {folder}/{name}.pid
AuthorizedKeysFile {folder}/key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {pam}
PermitUserRC no
PrintMotd no
UseDNS no
MaxStartups 100
Subsystem sftp internal-sftp
SetEnv {environment}
"""


class SshFiles:
    """Keys and configuration of a cluster, in one folder; ``environment`` is what each login begins with, beside PATH."""

    def __init__(self, folder: Path, addresses: dict[str, str], environment: dict[str, str]):
        self.folder = folder
        folder.mkdir(mode=0o700)
        make_key(folder / "key")
        known, settings = [], " ".join(f"{key}={value}" for key, value in environment.items())
        for name, address in addresses.items():
            known.append(f"{name},{address} {make_key(folder / f'{name}.key')}")
            server = SERVER.format(folder=folder, name=name, environment=settings, pam="yes" if root_is_locked() else "no")
            (folder / f"{name}.conf").write_text(server)
        (folder / "known_hosts").write_text("".join(known))
        (folder / "client.conf").write_text(CLIENT.format(folder=folder))
        self.program = Path(shutil.which("ssh")).resolve()
        shutil.copy(self.program, folder / "ssh-program")
        self.wrapper = folder / "ssh"
        self.wrapper.write_text(f'#!/bin/sh\nexec {folder}/ssh-program -F {folder}/client.conf "$@"\n')
        self.wrapper.chmod(0o755)

    def server(self, name: str) -> list[str]:
        """Command that serves the host of this name, in the foreground."""
        return [shutil.which("sshd"), "-D", "-e", "-f", str(self.folder / f"{name}.conf")]


def make_key(path: Path) -> str:
    """A new pair ``path``, ``path.pub``; returns the public line."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    return path.with_name(f"{path.name}.pub").read_text()


def root_is_locked() -> bool:
    """Whether root has no password ("!"): sshd then lets nobody in, unless PAM decides."""
    lines = Path("/etc/shadow").read_text().splitlines()
    return any(line.startswith("root:!") for line in lines)
