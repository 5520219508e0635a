#!/usr/bin/env bash
# Runs a training command that can be asked to save and stop:
#     bash launch/supervise.sh deepspeed launch/pretrain.py --deepspeed_config ds_configs/zero2.json --data my-data
# SIGTERM, SIGHUP (a closed terminal; not under nohup), SIGINT (Ctrl-C) and SIGUSR1 become a SIGUSR1 for the ranks, which save
# and exit with 75; this script waits for them and exits with the command's exit code. The launcher itself gets no signal:
# deepspeed would die at once and leave its ranks behind. A second Ctrl-C ends everything without saving.
# Where a signal has ended a rank, launchers make a code of their own of it; here it is 1, after a line that names the signal.
# It sees the ranks of its own machine, and one is enough: it tells those on other hosts. Where there is none (a login node),
# deepspeed gets a SIGTERM, which reaches the hosts: the run is saved, but its output is lost, and the exit code is 1. With
# several hosts, ssh is configured to notice within a minute that one of them is unreachable.
set -u
[ $# -gt 0 ] || { echo "usage: bash launch/supervise.sh COMMAND…" >&2; exit 2; }
# This identifies the command's processes, wherever launchers put them; deepspeed passes on what begins with PYTHON.
export PYTHON_MPNET_DS_SUPERVISOR=$$.$RANDOM
export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND--o ConnectTimeout=30 -o ServerAliveInterval=15 -o ServerAliveCountMax=4}"

processes() { # process ids of the command, one per line; with an argument, of those that have this variable as well
  local files
  mapfile -t files < <(grep -lsz "^PYTHON_MPNET_DS_SUPERVISOR=$PYTHON_MPNET_DS_SUPERVISOR\$" /proc/[0-9]*/environ)
  [ ${#files[@]} -gt 0 ] && grep -lsz "^${1-PYTHON_MPNET_DS_SUPERVISOR}=" "${files[@]}" | cut -d/ -f3
}
rank_of() { grep -sz '^RANK=\|^LOCAL_RANK=' "/proc/$1/environ" | sort -z | tr '\0' ' '; }
inherited=$(rank_of $$) # a pod of Kubernetes has a RANK, which its launchers have then as well
ranks() { # processes with a RANK of their own, without those that a rank has started itself
  local pid parent all
  all=$(processes RANK)
  [ -z "$inherited" ] || all=$(for pid in $all; do [ "$(rank_of "$pid")" = "$inherited" ] || echo "$pid"; done)
  for pid in $all; do
    parent=$(awk '$1 == "PPid:" { print $2 }' "/proc/$pid/status" 2>/dev/null)
    grep -qx "$parent" <<<"$all" || echo "$pid"
  done
}
ask() { # without ranks the command is the only process: python launch/pretrain.py
  local found
  found=$(ranks)
  if [ -z "$found" ] && pgrep -x pdsh -g "$command" >/dev/null; then
    echo "supervise: no rank is on this machine: asking the launcher to end those on other hosts, which save" >&2
    kill -TERM "$command" 2>/dev/null
    return
  fi
  [ $interrupts = 0 ] || echo "supervise: Ctrl-C: the run saves now and stops; a second Ctrl-C quits without saving" >&2
  echo "supervise: asking process ${found:-$command} to save and stop" | paste -sd' ' >&2
  kill -USR1 ${found:-$command} 2>/dev/null && asked=1
}
oom_kills() { awk '$1 == "oom_kill" { print $2 }' /proc/vmstat 2>/dev/null; }
end() {
  kill -TERM $(processes) 2>/dev/null
  for _ in 1 2 3 4 5; do [ -n "$(processes)" ] && sleep 1; done
  kill -KILL $(processes) 2>/dev/null
}
interrupts=0 signalled=0 asked=0
trap 'signalled=1; ask' TERM HUP USR1
trap : PIPE # who read its messages may be gone
trap 'signalled=1; interrupts=$((interrupts + 1)); if [ $interrupts = 1 ]; then ask; else end; fi' INT

killed_before=$(oom_kills)
setsid "$@" &
command=$! code=127
while :; do # a signal interrupts wait
  signalled=0
  wait "$command"; result=$?
  [ $result = 127 ] || code=$result
  [ $signalled = 1 ] || break
done
if [ -n "$(ranks)" ]; then # something else has ended the launcher; deepspeed exits with 0 then
  [ $code = 0 ] && code=1
  ask
  for _ in $(seq 120); do [ -n "$(ranks)" ] && sleep 1; done
fi
end
if [ $code -gt 130 ] && [ $interrupts -lt 2 ]; then
  number=$((code > 192 ? 256 - code : code - 128)) memory=''
  if [ $asked = 1 ] && [ "$(kill -l $number)" = USR1 ]; then
    echo "supervise: the run was stopped before the ranks were connected: there is nothing to save" >&2
    exit 75
  fi
  [ "$(oom_kills)" = "$killed_before" ] || memory=': out of memory? The kernel has killed a process for that meanwhile'
  echo "supervise: SIG$(kill -l $number 2>/dev/null || echo NAL $number) has ended a rank or its launcher$memory" >&2
  code=1
fi
exit $code
