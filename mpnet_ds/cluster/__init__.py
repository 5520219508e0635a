"""Whether the hosts of a hostfile can train together, found out before a run is started.

hostfile, launch_environment → check → ssh ──► on_host ──► probe        facts of the host: versions, code, data, devices, disk
                                 │                     ├─► links        its interface, and which hosts reach each other
                                 ▼                     └─► bandwidth    collectives of torch.distributed between all ranks
                               verdict (facts → findings) → report
"""
