"""Whether the hosts of a hostfile can train together, found out before a run is started.

on the machine that starts            on each host
hostfile, launch_environment
  → check ──── remote ──── ssh ────► agent ──► probe        facts: versions, devices, data, disk
      │                                   ├──► links        who reaches whom
      ▼                                   └──► bandwidth    collectives of torch.distributed
    verdict (pure comparisons) → tables
"""
