#!/usr/bin/env bash
# Trains with N processes on this machine, one for each GPU; options go to `main.py train`.
#   scripts/train_dist.sh N [options]      scripts/train_dist.sh 8 --config configs/base.yaml --data.root path/to/coco
# train.batch_size is that of all processes together. Ctrl-C, SIGTERM and SIGUSR1 make the run finish its step, save and
# exit with 75; --train.resume auto goes on. A bad option or file is one sentence, and 2.
#
# Several machines: the same command on each, and in the environment
#   NNODES         how many (default 1)
#   NODE_RANK      which this is, from 0 (default SLURM_NODEID)
#   MASTER_ADDR    address of number 0 as the others reach it: rather a number than a name
#   MASTER_PORT    a free port there (default 29500)
# train.output must be a folder that all of them see: any of them may be the one that writes.
#
#   MAX_RESTARTS   how often to start again after a crash: default 3 with --train.resume auto, which then goes on from the
#                  newest checkpoint, else 0
# OMP_NUM_THREADS (default without a GPU: cores / N), GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME work as ever.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}
whole() { # NAME VALUE SMALLEST
  [[ "$2" =~ ^(0|[1-9][0-9]{0,8})$ ]] && (($2 >= $3)) || fail "$1 is '$2'; it must be a whole number, at least $3"
}

(($#)) || fail "how many processes? scripts/train_dist.sh N [options of main.py train]"
whole "the number of processes" "$1" 1
processes="$1" nodes="${NNODES:-1}" node="${NODE_RANK:-${SLURM_NODEID:-0}}"
shift
whole NNODES "$nodes" 1
whole NODE_RANK "$node" 0
((node < nodes)) || fail "NODE_RANK is $node, but with NNODES=$nodes the last machine is $((nodes - 1))"
options=(--nproc-per-node "$processes" --nnodes "$nodes" --monitor-interval 0.5)
if ((nodes > 1)); then
  [[ -n "${NODE_RANK:-}${SLURM_NODEID:-}" ]] || fail "NNODES is $nodes, but NODE_RANK does not say which of them this is"
  [[ -n "${MASTER_ADDR:-}" ]] || fail "NNODES is $nodes, but MASTER_ADDR does not say where they meet"
  port="${MASTER_PORT:-29500}"
  whole MASTER_PORT "$port" 1
  ((port < 65536)) || fail "MASTER_PORT is $port; ports end at 65535"
  options+=(--node-rank "$node" --master-addr "$MASTER_ADDR" --master-port "$port")
fi

restarts=0 previous=""
for argument in "$@"; do
  if [[ "$argument" == --train.resume=auto || "$previous $argument" == "--train.resume auto" ]]; then
    restarts=3
  fi
  previous="$argument"
done
restarts="${MAX_RESTARTS:-$restarts}"
whole MAX_RESTARTS "$restarts" 0

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"
[[ -x "$python" ]] || fail "there is no .venv; scripts/setup.sh makes it"
# The same process from here on, so that signals need nobody to pass them on.
exec "$python" "$root/scripts/launch.py" "${options[@]}" --max-restarts "$restarts" "$root/main.py" train "$@"
