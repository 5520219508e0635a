"""Check the hosts of a hostfile before a run."""

import asyncio
from functools import partial

from mpnet_ds.command_line import Parser, invocation, size
from mpnet_ds.ranks.launchers import PORT


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Check that the hosts of a hostfile can train together: ssh, versions, code, data, accelerators, disk, clocks, "
        "links, bandwidth.\nExit code 2 with everything that must be changed.",
        f"{invocation('check_cluster')} --hostfile hostfile --data my-data --output_dir runs/first",
    )
    parser.add_argument("--hostfile", required=True, metavar="FILE", help="as for deepspeed: lines HOST slots=N")
    parser.add_argument("--data", nargs="+", default=[], metavar="DIR[:WEIGHT]", help="datasets, as for launch/pretrain.py")
    parser.add_argument("--verify_data", action="store_true", help="read every byte of them on every host")
    parser.add_argument("--output_dir", default="runs", metavar="DIR", help="where checkpoints will go (runs)")
    parser.add_argument("--min_disk", type=size, default="10GB", metavar="SIZE", help="free space wanted there (10GB)")
    parser.add_argument("--ssh_port", type=int, metavar="P", help="as for deepspeed")
    parser.add_argument("--master_port", type=int, default=PORT, metavar="P", help=f"as for deepspeed ({PORT})")
    parser.add_argument("--master_addr", metavar="A", help="as for deepspeed (the first address of the first host)")
    parser.add_argument("--skip_bandwidth", action="store_true", help="measure nothing, which saves a minute")
    return parser


def main() -> None:
    """Print the tables; ``UserError`` with what must be changed."""
    options = build_parser().parse_args()
    from mpnet_ds.cluster.check import ClusterCheck
    from mpnet_ds.cluster.report import report
    from mpnet_ds.data.samples.mixture import parse_weighted
    from mpnet_ds.errors import UserError, each_of

    weighted = [partial(parse_weighted, text) for text in options.data]
    check, *data = each_of(lambda: ClusterCheck(options), *weighted)
    options.data = [folder for folder, _ in data]
    asyncio.run(check.run())
    print(report(check))
    if fatal := [finding.text for finding in check.findings if finding.is_fatal]:
        raise UserError(*fatal)
    print("\nAll checks passed.")
