#!/usr/bin/env bash
# Pre-training under SLURM, one task for each GPU. Edit the lines down to "Nothing to edit", then, in the repository:
#     sbatch launch/slurm.sh [ARGUMENT OF launch/pretrain.py]…
# Before its time is up the job saves its run, queues itself again under its number and goes on where it stopped. It does so
# after exit code 75 only (saved, not done): not when the run is done (0), at a fault (1) or at wrong input (2).
#     sbatch --array=0-3 launch/slurm.sh …        four runs: each in its own folder below the output, with its number as seed
#     sbatch --array=1-10%1 launch/slurm.sh …     with array=chain below: one run in up to ten jobs, one after the other, where
#                                                 jobs may not requeue themselves; %1 because they share one folder
# scancel --signal=USR1 JOB has it save and queue itself again now; scancel JOB saves, if KillWait suffices, and ends it.

#SBATCH --job-name=mpnet_ds
#SBATCH --nodes=2
# One task for each GPU. Do not bind GPUs to tasks (--gpus-per-task): those of a node use each other's memory.
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Seconds before the end at which the ranks are told to save: at least twice what a save takes. SLURM may be a minute early.
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

environment=.venv                             # virtual environment that all nodes can read; empty: Python as sbatch found it
deepspeed_config=ds_configs/multi_node.json
data=(my-data)                                # what follows on --data, such as (a:0.7 b:0.3)
output=runs/${SLURM_JOB_NAME:-slurm}          # the run's folder, which all nodes can write
array=runs                                    # what the tasks of a job array are: runs, or the links of a chain
max_requeues=100

# Nothing to edit below.
set -u
say() { echo "slurm.sh: $*"; }
fail() { echo "error: $*" >&2; exit 2; }
[ -n "${SLURM_JOB_ID:-}" ] || fail "not in a SLURM job: sbatch launch/slurm.sh …"
[ -f launch/pretrain.py ] || fail "no launch/pretrain.py in $PWD: call sbatch in the repository."
[ "$array" = runs ] || [ "$array" = chain ] || fail "array=$array at the top of launch/slurm.sh: it must be runs or chain."
if [ -n "$environment" ]; then
  [ -f "$environment/bin/activate" ] || fail "no virtual environment $environment: correct environment= in launch/slurm.sh."
  # shellcheck source=/dev/null
  source "$environment/bin/activate"
fi

job=$SLURM_JOB_ID restarts=${SLURM_RESTART_COUNT:-0}
arguments=(--deepspeed_config "$deepspeed_config")
[ ${#data[@]} = 0 ] || arguments+=(--data "${data[@]}")
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID  # one task's own number may be the array's, and then means all tasks
  if [ "$array" = runs ]; then
    [[ " $* " != *" --output_dir"[\ =]* ]] || fail "an array of runs: set output= in launch/slurm.sh instead of --output_dir."
    output=$output/$SLURM_ARRAY_TASK_ID
    arguments+=(--seed "$SLURM_ARRAY_TASK_ID")
  fi
fi
arguments+=(--output_dir "$output" "$@")

# The warning goes to the ranks. Where only this script gets it (--signal=B:USR1@300, scancel --batch), srun passes it on.
# SIGTERM, which SLURM sends to everything when it ends a job itself, must not end this script before the ranks have saved.
step='' heard='' ended=''
trap 'heard=1; [ -z "$step" ] || kill -USR1 "$step"' USR1
trap 'heard=1 ended=1' TERM
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# The first rank that leaves must not have the others killed, which may still be saving; a dead one they notice themselves.
# srun does not take the number of processors from sbatch.
srun --kill-on-bad-exit=0 --wait=300 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  python launch/pretrain.py "${arguments[@]}" &
step=$! code=1
while :; do # a signal cuts a wait short
  heard=''
  wait "$step"; result=$?
  [ $result = 127 ] || code=$result
  [ -n "$heard" ] || break
done

if [ $code = 138 ]; then
  say "the warning (SIGUSR1) came before training had begun: give the job more --time, or a later warning in --signal." >&2
elif [ $code = 75 ] && [ -n "$ended" ]; then
  say "saved. SLURM has ended this job: it queues it again itself if it has preempted it, otherwise submit it again."
elif [ $code = 75 ] && [ "$array" = chain ] && [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  say "saved. The next task of the array goes on."
elif [ $code = 75 ] && [ "$restarts" -ge "$max_requeues" ]; then
  say "saved, but queued again $restarts times already (max_requeues): submit it again to go on." >&2
elif [ $code = 75 ]; then
  say "saved; queueing job $job again."
  scontrol requeue "$job" || say "that failed: submit it again to go on, or use a chain, see the top of launch/slurm.sh." >&2
elif [ "$array" = chain ] && [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  scancel --state=PENDING "$SLURM_ARRAY_JOB_ID"  # the run is done, or cannot go on
fi
exit $code
