#!/usr/bin/env bash
# Pre-training through torchrun. On one machine, on all of its GPUs:
#     bash launch/torchrun.sh --deepspeed_config ds_configs/zero2.json --data my-data --output_dir runs/first
# On several, in the repository on each of them, with its own NODE_RANK (0 on the first, whose address is MASTER_ADDR):
#     NODES=2 NODE_RANK=1 MASTER_ADDR=gpu1 bash launch/torchrun.sh --deepspeed_config ds_configs/multi_node.json --data …
# GPUS is the number of ranks on this machine (all of its GPUs; 1 without any), MASTER_PORT a free port of the first (29500).
# SIGTERM or Ctrl-C on any machine saves and ends the run on all. The exit code is that of the ranks: docs/several_machines.md.
set -u
here=$(dirname "$(realpath "$0")")
NODES=${NODES:-1}
NODE_RANK=${NODE_RANK:-}
MASTER_ADDR=${MASTER_ADDR:-}
MASTER_PORT=${MASTER_PORT:-29500}
GPUS=${GPUS:-}

fail() { echo "error: $*" >&2; exit 2; }
is_number() { [[ $1 =~ ^(0|[1-9][0-9]*)$ ]]; }
[ $# -gt 0 ] || fail "nothing to pass to launch/pretrain.py: bash launch/torchrun.sh --deepspeed_config FILE …"
is_number "$NODES" && [ "$NODES" -gt 0 ] || fail "NODES is '$NODES', not a number of machines."
if [ "$NODES" -gt 1 ]; then
  [ -n "$MASTER_ADDR" ] || fail "NODES is $NODES: set MASTER_ADDR to the name or address of the first machine."
  is_number "$NODE_RANK" || fail "NODES is $NODES: set NODE_RANK to this machine's number, 0 on the first."
  [ "$NODE_RANK" -lt "$NODES" ] || fail "NODE_RANK is $NODE_RANK, but with NODES=$NODES the last machine is $((NODES - 1))."
fi
GPUS=${GPUS:-$(python -c 'import torch; print(torch.accelerator.device_count() or 1)' 2>/dev/null)} \
  || fail "python on PATH ($(command -v python || echo none)) has no torch: activate the environment first."
is_number "$GPUS" && [ "$GPUS" -gt 0 ] || fail "GPUS is '$GPUS', not a number of ranks."
# torchrun's own default, set here to silence its warning; and no warnings about names that cannot be resolved.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR}
exec bash "$here/supervise.sh" python "$here/torchrun.py" --nnodes "$NODES" --node-rank "${NODE_RANK:-0}" \
  --nproc-per-node "$GPUS" --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "$MASTER_PORT" "$here/pretrain.py" "$@"
