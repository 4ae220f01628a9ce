#!/usr/bin/env bash
# Trains under Slurm, on as many nodes as are asked for, with one process for each GPU; from the repository's root:
#   sbatch --nodes 2 --gpus-per-node 8 --cpus-per-task 64 scripts/train_slurm.sh [options of main.py train]
# Options of sbatch stand before the script and win over those below. Without GPUs there is one process on each node,
# which computes with all cores that the job has there.
#
# Before the time limit, and when it is preempted, the run finishes its step and saves, and the job goes back into the
# queue; when it starts again, on whichever nodes, it goes on from there. scancel ends it for good.
# train.output must be a folder that all nodes see. Data workers (data.workers) take cores, too: --cpus-per-task.
#SBATCH --job-name=deformable-detr
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -uo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}
# Slurm runs a copy of this file, which does not know where it comes from.
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
[[ -n "${SLURM_JOB_ID:-}" ]] || fail "this is for sbatch: sbatch [options of sbatch] scripts/train_slurm.sh [options]"
[[ -x scripts/train_dist.sh ]] || fail "'$PWD' is not the root of the repository; call sbatch from there"
for argument in "$@"; do
  [[ "$argument" != --train.resume* ]] || fail "leave out --train.resume: in a job that is requeued it is always auto"
done

nodes="${SLURM_JOB_NUM_NODES:-1}"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"  # jobs may share a node
export NNODES="$nodes" MASTER_ADDR MASTER_PORT
# One task on a node may save while that of another has ended. Since Slurm 22.05 srun does not take over --cpus-per-task.
step=(--nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --kill-on-bad-exit=0)
[[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || step+=(--cpus-per-task "$SLURM_CPUS_PER_TASK")

asked=0
pass_on() {
  asked=1
  kill -USR1 "$srun" 2> /dev/null
}
srun "${step[@]}" scripts/train_dist.sh "${SLURM_GPUS_ON_NODE:-1}" "$@" --train.resume auto &
srun=$!
trap pass_on USR1 TERM
# A signal ends the wait, not srun.
code=0
while wait "$srun"; code=$?; kill -0 "$srun" 2> /dev/null; do :; done

# While Slurm only announces the time limit or preemption, the job counts as running; after scancel it does not.
if ((code == 75 || (asked && code != 0 && code != 2))); then
  if [[ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" == RUNNING ]]; then
    echo "stopped (exit code $code): back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "stopped (exit code $code), and cancelled"
  fi
fi
exit "$code"
