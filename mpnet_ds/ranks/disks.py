"""Disks of the output folder: a shared file system is one disk for all ranks, hosts with local disks have one each.

This is tested at start by writing: the first rank of each host makes the output folder and writes a token file into it;
each rank looks which tokens it sees. Ranks that see each other's token share a disk, whatever its path, even if only two
hosts of three share one. The lowest rank of a disk is its *keeper*: it does there what rank 0 does on a shared disk.
The tokens, and folders that were made for them, are removed again.

Tokens are looked up by name. A name that nobody has asked for before is in no cache of a network file system, whereas the
listing of a folder may be cached for half a minute. Seeing a token proves a shared disk, not seeing it proves little: so
ranks look several times before disks count as local.
"""

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

from mpnet_ds.errors import UserError
from mpnet_ds.files import check_links
from mpnet_ds.ranks.process_group import Ranks, attempt

TOKEN = ".mpnet_ds.token-"
"""Prefix of the names of token files."""
LOOKS, PAUSE = 5, 0.75
"""How many times a rank looks for the tokens of others, and the seconds between."""


class Disks:
    """The disks of an output folder. ``keepers``: for each rank, the lowest that shares its disk; None if all share one."""

    def __init__(self, ranks: Ranks, keepers: list[int] | None = None):
        self.ranks = ranks
        self._keeper_of = keepers or [0] * ranks.world_size
        self.keepers = sorted(set(self._keeper_of))

    @property
    def is_one(self) -> bool:
        """Whether all ranks share one disk."""
        return len(self.keepers) == 1

    @property
    def is_keeper(self) -> bool:
        """Whether this rank is the one that writes what its disk needs once."""
        return self._keeper_of[self.ranks.rank] == self.ranks.rank

    @property
    def number(self) -> int:
        """Number of this rank's disk, from 0: its index in what ``on_each`` returns."""
        return self.keepers.index(self._keeper_of[self.ranks.rank])

    @property
    def here_and_elsewhere(self) -> tuple[list[int], list[int]]:
        """The ranks of this disk, and all others."""
        keeper, ranks = self._keeper_of[self.ranks.rank], range(self.ranks.world_size)
        here = [rank for rank in ranks if self._keeper_of[rank] == keeper]
        return here, [rank for rank in ranks if self._keeper_of[rank] != keeper]

    @property
    def names(self) -> list[str]:
        """For each disk, the hosts that share it."""
        hosts: dict[int, dict[str, None]] = {keeper: {} for keeper in self.keepers}
        for rank, keeper in enumerate(self._keeper_of):
            hosts[keeper][self.ranks.hosts[rank]] = None
        return [" + ".join(hosts[keeper]) for keeper in self.keepers]

    def at_host(self, text: str) -> str:
        """Put the name of this rank's host before ``text`` if there are several disks."""
        return text if self.is_one else f"{self.ranks.host}: {text}"

    def on_each(self, function: Callable[[], Any]) -> list:
        """Call ``function`` on the keeper of each disk; return the results on every rank. Every rank must call this.

        An exception of any keeper is raised on every rank; several ``UserError`` are raised as one, with their hosts.
        """
        if self.is_one:
            return [self.ranks.on_main(function)]
        gathered = self.ranks.gather(attempt(function) if self.is_keeper else None)
        outcomes = [gathered[keeper] for keeper in self.keepers]
        failed = {number: outcome for number, outcome in enumerate(outcomes) if isinstance(outcome, Exception)}
        for error in failed.values():
            if not isinstance(error, UserError):
                raise error
        if failed:
            raise UserError(
                *[f"{self.names[number]}: {text}" for number, error in failed.items() for text in error.findings]
            )
        return outcomes

    def describe(self) -> list[str]:
        """Describe several disks for the report at start; empty for a single one."""
        if self.is_one:
            return []
        where = f"Checkpoints are on {len(self.keepers)} disks that are not shared: {_enumerate(self.names)}"
        return [f"{where}. Resume with these hosts in this order; to use the model, gather the checkpoint on one disk."]

    def gather_commands(self, folder: Path) -> list[str]:
        """Return the commands, for rank 0's host, that gather the files of all disks there."""
        hosts = [self.ranks.hosts[keeper] for keeper in self.keepers[1:]]
        return [gather_command(host, folder.absolute(), folder.absolute()) for host in hosts]


def find_disks(output: Path, ranks: Ranks) -> Disks:
    """Find out which ranks share a disk, by writing tokens and looking for them; every rank must call it.

    Raises ``UserError`` on all ranks, naming the hosts, if the output folder cannot be made or written.
    """
    writers = [rank for rank, local_rank in enumerate(ranks.gather(ranks.local_rank)) if local_rank == 0]
    if len(writers) < 2:
        return Disks(ranks)
    name = ranks.on_main(lambda: TOKEN + uuid.uuid4().hex)
    tokens = {rank: output / f"{name}-{rank}" for rank in writers}
    outcomes = ranks.gather(_write(tokens[ranks.rank]) if ranks.rank in tokens else ("", []))
    failures = [f"{ranks.hosts[rank]}: {reason}" for rank, (reason, _) in enumerate(outcomes) if reason]
    keepers = list(range(ranks.world_size)) if failures else _look(tokens, ranks)
    disks = Disks(ranks, keepers)
    ranks.barrier()  # all have looked
    if ranks.rank in tokens:
        with suppress(OSError):
            tokens[ranks.rank].unlink()
    ranks.barrier()
    if disks.is_keeper:
        _remove_empty([folder for rank in disks.here_and_elsewhere[0] for folder in outcomes[rank][1]])
    ranks.barrier()
    if failures:
        raise UserError(*failures)
    return disks


def _write(token: Path) -> tuple[str, list[Path]]:
    """Write a token; return the reason if that fails, and the folders that were made for it."""
    made: list[Path] = []
    try:
        check_links(token.parent)
        for folder in (*reversed(token.parent.parents), token.parent):
            if not folder.is_dir():
                with suppress(FileExistsError):  # another host was faster
                    folder.mkdir()
                    made.append(folder)
        token.touch()
    except OSError as error:
        return f"cannot write to {token.parent}: {error.strerror}. Choose another --output_dir.", made
    return "", made


def _remove_empty(folders: list[Path]) -> None:
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        with suppress(OSError):
            folder.rmdir()


def _look(tokens: dict[int, Path], ranks: Ranks) -> list[int]:
    """Find for each rank the lowest rank that shares its disk."""
    for look in range(LOOKS):
        lowest = next((rank for rank, token in sorted(tokens.items()) if token.exists()), ranks.rank)
        seen = ranks.gather(lowest)
        if not any(seen):
            break
        time.sleep(PAUSE if look < LOOKS - 1 else 0)
    return follow(seen)


def follow(seen: list[int]) -> list[int]:
    """Return the keeper of each rank's disk, from the lowest rank whose token each rank sees.

    If a rank sees a token whose writer sees a lower one, all of them share a disk: a slow cache hides the lower one.
    """
    keepers = list(range(len(seen)))
    for rank, lowest in enumerate(seen):
        keepers[rank] = keepers[lowest] if lowest < rank else rank
    return keepers


def _enumerate(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def gather_command(host: str, source: Path | str, target: Path | str) -> str:
    """Return the command that copies a folder from a host, without overwriting what is here already."""
    return f"rsync -a --ignore-existing {quote(f'{host}:{source}/')} {quote(f'{target}/')}"
