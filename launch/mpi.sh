#!/usr/bin/env bash
# Pre-training through OpenMPI's mpirun, one rank per slot of a DeepSpeed hostfile (launch/hostfile.example):
#     bash launch/mpi.sh my-hostfile --deepspeed_config ds_configs/multi_node.json --data my-data --output_dir runs/first
# Start it on the first host, which must be able to log in to every host over ssh without a password; all need OpenMPI, this
# repository, its Python and the data at the same paths. MASTER_PORT is a free port of the first host (29500). MPI_FLAGS holds
# further flags of mpirun, such as -x NAME for variables beyond those below.
# SIGTERM or Ctrl-C saves and ends the run on all hosts. The exit code is that of the ranks: docs/several_machines.md.
set -u
here=$(dirname "$(realpath "$0")")
MASTER_PORT=${MASTER_PORT:-29500}
MPI_FLAGS=${MPI_FLAGS:-}
PASSED_ON='PATH|LD_LIBRARY_PATH|PYTHONPATH|VIRTUAL_ENV|(CUDA|DS|FI|GLOO|HF|NCCL|OMP|TORCH|TRITON|UCX)_.*'

fail() { echo "error: $*" >&2; exit 2; }
[ $# -gt 1 ] || fail "usage: bash launch/mpi.sh HOSTFILE --deepspeed_config FILE … (see launch/hostfile.example)"
hostfile=$(realpath "$1"); shift
[ -f "$hostfile" ] || fail "no hostfile $hostfile."
command -v mpirun >/dev/null || fail "mpirun is not on PATH: install OpenMPI (Debian: openmpi-bin)."
[[ $(mpirun --version 2>/dev/null) == *"Open MPI"* ]] || fail "$(command -v mpirun) is not OpenMPI's."
program=$(command -v python) || fail "no python on PATH: activate the environment first."
wrong=$(grep -nvE '^\s*(#.*)?$|^\s*[^#[:space:]]+\s+slots=[0-9]+\s*(#.*)?$' "$hostfile" | head -n 1)
[ -z "$wrong" ] || fail "$hostfile, line $wrong: expected HOST slots=N."
mapfile -t hosts < <(sed -E 's/#.*//' "$hostfile" | awk 'NF { print $1 }')
[ ${#hosts[@]} -gt 0 ] || fail "$hostfile names no host."
export MASTER_PORT MASTER_ADDR=${MASTER_ADDR:-${hosts[0]}}
if [ ${#hosts[@]} -gt 1 ] && [[ $MASTER_ADDR =~ ^(localhost|127\..*|::1)$ ]]; then
  fail "the other hosts cannot reach $MASTER_ADDR: write this host's name or address into $hostfile."
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
flags=(-x MASTER_ADDR -x MASTER_PORT)
while read -r name; do flags+=(-x "$name"); done < <(compgen -e | grep -xE "$PASSED_ON")
# Ranks in the order of the hostfile, slot by slot; not bound to one core each, on which their threads would queue.
# shellcheck disable=SC2086  # MPI_FLAGS may hold several words
exec bash "$here/supervise.sh" mpirun --hostfile "$hostfile" --map-by slot --bind-to none --wdir "$PWD" "${flags[@]}" \
  $MPI_FLAGS "$program" "$here/pretrain.py" "$@"
