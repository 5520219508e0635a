#!/usr/bin/env bash
# Pre-training under SLURM, one task per GPU. Edit the lines down to "Nothing to edit", then, in the repository:
#     sbatch launch/slurm.sh [ARGUMENT OF launch/pretrain.py]…
# Before its time limit the job saves its run, requeues itself under the same number and resumes. It does so only after exit
# code 75 (saved, not done): not when the run is done (0), after a fault (1) or on wrong input (2).
#     sbatch --array=0-3 launch/slurm.sh …        four runs, each in its own subfolder of the output, with its number as seed
#     sbatch --array=1-10%1 launch/slurm.sh …     with array=chain below: one run in up to ten consecutive jobs, where jobs may
#                                                 not requeue themselves; %1 because they share one folder
# scancel --signal=USR1 JOB makes it save and requeue itself now; scancel JOB saves, if KillWait is long enough, and ends it.

#SBATCH --job-name=mpnet_ds
#SBATCH --nodes=2
# One task per GPU. Do not bind GPUs to tasks (--gpus-per-task): the GPUs of a node access each other's memory.
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Seconds before the time limit at which the ranks save: at least twice what a save takes. SLURM may be a minute early.
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

environment=.venv                             # virtual environment, readable from all nodes; empty: the Python that sbatch found
deepspeed_config=ds_configs/multi_node.json
data=(my-data)                                # values of --data, such as (a:0.7 b:0.3)
output=runs/${SLURM_JOB_NAME:-slurm}          # folder of the run, writable from all nodes
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
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID  # a task's own number may equal the array's, which means all tasks
  if [ "$array" = runs ]; then
    [[ " $* " != *" --output_dir"[\ =]* ]] || fail "an array of runs: set output= in launch/slurm.sh instead of --output_dir."
    output=$output/$SLURM_ARRAY_TASK_ID
    arguments+=(--seed "$SLURM_ARRAY_TASK_ID")
  fi
fi
arguments+=(--output_dir "$output" "$@")

# The signal goes to the ranks. Where only this script gets it (--signal=B:USR1@300, scancel --batch), srun passes it on.
# SIGTERM, which SLURM sends to all processes when it ends a job itself, must not end this script before the ranks have saved.
step='' heard='' ended=''
trap 'heard=1; [ -z "$step" ] || kill -USR1 "$step"' USR1 HUP
trap 'heard=1 ended=1' TERM
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# The first rank that exits must not take the others with it: they may still be saving, and notice a dead rank themselves.
# srun does not inherit the number of CPUs from sbatch.
srun --kill-on-bad-exit=0 --wait=300 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  python launch/pretrain.py "${arguments[@]}" &
step=$! code=1
while :; do # a signal interrupts wait
  heard=''
  wait "$step"; result=$?
  [ $result = 127 ] || code=$result
  [ -n "$heard" ] || break
done

if [ $code = 138 ]; then
  say "the warning (SIGUSR1) came before training had begun: give the job more --time, or a later warning in --signal." >&2
elif [ $code -gt 130 ]; then
  say "SIG$(kill -l $((code - 128)) 2>/dev/null || echo NAL) has ended a rank; another one says which." >&2
  code=1
elif [ $code = 75 ] && [ -n "$ended" ]; then
  say "saved. SLURM has ended this job: it queues it again itself if it has preempted it, otherwise submit it again."
elif [ $code = 75 ] && [ "$array" = chain ] && [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  say "saved. The next task of the array resumes."
elif [ $code = 75 ] && [ "$restarts" -ge "$max_requeues" ]; then
  say "saved, but requeued $restarts times already (max_requeues): submit it again to resume." >&2
elif [ $code = 75 ]; then
  say "saved; queueing job $job again."
  scontrol requeue "$job" || say "that failed: submit it again to resume, or use a chain, see the top of launch/slurm.sh." >&2
elif [ "$array" = chain ] && [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  scancel --state=PENDING "$SLURM_ARRAY_JOB_ID"  # the run is done, or cannot continue
fi
exit $code
