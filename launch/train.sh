#!/usr/bin/env bash
# Starts `megaswitch train` under torchrun, on this node or on one of many. See --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash launch/train.sh [arguments of megaswitch train]

  bash launch/train.sh --config launch/configs/X.toml --train.steps=1000
  NPROC=4 bash launch/train.sh --model.preset=switch_tiny --layout.ep=4 --data.train=PREFIX
  NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash launch/train.sh --config X.toml     (and NODE_RANK=1 on the other)
  NNODES=2 RDZV_ENDPOINT=node0:29400 bash launch/train.sh --config X.toml         (the same line on both)

The environment says where:
  NPROC          processes on this node (default: its GPUs; 1 without any)
  NNODES         nodes (default 1)
  NODE_RANK      this node's number from 0, with MASTER_ADDR
  MASTER_ADDR    host of node 0; MASTER_PORT (default 29500) must be free there
  RDZV_ENDPOINT  host:port of one of the nodes, instead of NODE_RANK and MASTER_ADDR; RDZV_ID tells runs apart
  LOCAL_ADDR     address by which the other nodes reach this one (default: what its host name stands for)
  JOIN_SECONDS   how long a node waits for all others, at the start and for one that was lost (default 600)
  MAX_RESTARTS   how often torchrun starts all processes again after one has died (default 0; many nodes: RDZV_ENDPOINT)
  STOP_SECONDS   how long a stopped run may take to save before it is killed (default 300)
  OMP_NUM_THREADS  threads of one process on a CPU (default: cores divided by NPROC)

SIGTERM, SIGINT or SIGUSR1 to torchrun: the step is finished and saved; the same command goes on from there.
TEXT
}

count_gpus() {
    local listed
    listed="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')" || true
    echo "$((listed > 0 ? listed : 1))"
}

rendezvous() {
    local host=""
    if [[ -n "${RDZV_ENDPOINT:-}" ]]; then
        # Where a host's name stands for 127.0.1.1, torchrun does not see that the address of the meeting point is its own.
        if [[ "${RDZV_ENDPOINT%:*}" == "${LOCAL_ADDR:-}" ]]; then host=",is_host=1"; fi
        echo --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "${RDZV_ID:-megaswitch}" \
            --rdzv-conf "join_timeout=${JOIN_SECONDS:-600}$host" ${LOCAL_ADDR:+--local-addr "$LOCAL_ADDR"}
    elif ((nnodes == 1)); then
        echo --standalone
    else
        echo --node-rank "${NODE_RANK:?number of this node, from 0}" \
            --master-addr "${MASTER_ADDR:?host of node 0 (or set RDZV_ENDPOINT)}" --master-port "${MASTER_PORT:-29500}" \
            --rdzv-conf "timeout=${JOIN_SECONDS:-600}"
    fi
}

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
    usage
    exit 0
fi

python="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python"
[[ -x "$python" ]] || python=python3
nnodes="${NNODES:-1}"
nproc_per_node="${NPROC:-$(count_gpus)}"
cores="$(getconf _NPROCESSORS_ONLN)"
threads=$((cores / nproc_per_node))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
# Else a restarted attempt meets the addresses that the dead one left in the shared store, and hangs.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
where="$(rendezvous)"
if [[ "$where" == *--master-addr* ]] && ((${MAX_RESTARTS:-0} > 0)); then
    # This way of meeting always shares the store, with the addresses of the dead in it.
    echo "train: MAX_RESTARTS needs RDZV_ENDPOINT where there are several nodes: restarted processes that meet by NODE_RANK" \
        "and MASTER_ADDR look for the dead ones; set RDZV_ENDPOINT=HOST:PORT instead of both" >&2
    exit 64
fi

# torchrun passes on only the signals named here: an unnamed one ends it and leaves its workers behind.
# shellcheck disable=SC2086  # $where is a list of options
exec "$python" -m torch.distributed.run --nnodes "$nnodes" --nproc-per-node "$nproc_per_node" $where \
    --max-restarts "${MAX_RESTARTS:-0}" --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --shutdown-timeout "${STOP_SECONDS:-300}" -m megaswitch train "$@"
