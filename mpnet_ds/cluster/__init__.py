"""Whether the hosts of a hostfile can train together, found out before a run is started.

launcher_files → check → ssh ─► on_host ─┬► probe       facts: versions, code, data, devices, disk
                   ▼                     ├► links       routes, and which hosts reach each other
            verdict, report              └► bandwidth   collectives of torch.distributed
"""
