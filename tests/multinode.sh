#!/usr/bin/env bash
# Trains on two "nodes" of this machine, loses one of them, brings it back and compares with a run that nothing happened to.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash tests/multinode.sh [--lose 0|1] [--keep DIR] [arguments of megaswitch train]

  bash tests/multinode.sh                                        loses node 1, the one that the other waits for
  bash tests/multinode.sh --lose 0 --layout.tp=2 --layout.ep=4   loses node 0, which holds the meeting point

Two network namespaces with a cable (veth) between them are two nodes: a host name, an address and a launch/train.sh
of two processes each; they meet at node 0 and talk by gloo over TCP.

  1. Nodes with different numbers of processes are refused.
  2. A run that nothing happens to.
  3. The same run again; in its middle the cable of one node is cut and every process of that node killed.
     The cable is mended and the node started again by the same line (where it was node 0, node 1 too, since its
     torchrun has nowhere to meet any more). Training goes on from the newest checkpoint to the end.
  4. The last checkpoints of both runs are compared: weights and optimizer state must be equal, bit for bit.

  --lose N     the node that is lost (default 1)
  --keep DIR   put logs and runs into DIR, and keep them (default: a temporary folder, removed at the end)

Other arguments go to every run (default: --layout.pp=2 --layout.ep=2). Nothing of the host's network is touched. All that is
started is in namespaces of its own, which end with this script, however it ends. Takes three to six minutes on two cores.
Where namespaces may not be made it says "skipped: " with the reason, and ends with 0.
TEXT
}

say() { printf '%(%H:%M:%S)T multinode: %s\n' -1 "$*"; }
skip() {
    echo "skipped: $*"
    exit 0
}
misuse() {
    echo "multinode: error: $*; see --help" >&2
    exit 64
}

# ---- Outside: check what is there, enter new namespaces, clean up.

# Prints the command that enters new namespaces; what keeps us from it is left in the file $1.
way_in() {
    local why="$1" rights ways=("--map-root-user")
    if ((EUID == 0)); then ways=("" "--map-root-user"); fi
    for rights in "${ways[@]}"; do
        # The death of this script ends unshare, and that of unshare all that is inside.
        local enter="setpriv --pdeathsig KILL unshare $rights --mount --net --uts --pid --fork --kill-child --mount-proc"
        # shellcheck disable=SC2086  # a command and its options
        if $enter bash -c 'mount -t tmpfs none /run && ip netns add probe && ip link add probe0 type veth peer name probe1' \
            2>"$why"; then
            echo "$enter"
            return
        fi
    done
    return 1
}

outside() {
    local tool
    [[ "$(uname -s)" == Linux ]] || skip "network namespaces are Linux's"
    for tool in ip unshare setpriv mount; do
        command -v "$tool" >/dev/null || skip "there is no \`$tool\` here (packages iproute2, util-linux, mount)"
    done
    if [[ -n "$folder" ]]; then
        mkdir -p "$folder"
        folder="$(cd "$folder" && pwd)"
        [[ ! -e "$folder/undisturbed" && ! -e "$folder/disturbed" ]] || misuse "$folder holds the runs of an earlier call"
    else
        folder="$(mktemp -d "${TMPDIR:-/tmp}/multinode.XXXXXX")"
        temporary="$folder"
    fi
    child=""
    trap 'leave $?' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    local enter
    enter="$(way_in "$folder/why")" || skip "no namespaces may be made here ($(tail -n 1 "$folder/why"))"
    # shellcheck disable=SC2086
    MULTINODE_INSIDE=1 $enter bash "$root/tests/multinode.sh" --lose "$lost" --keep "$folder" "${arguments[@]}" &
    child=$!
    wait "$child"
}

leave() {
    trap '' INT TERM HUP
    if [[ -n "$child" ]]; then
        kill -KILL "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    if [[ -n "${temporary:-}" ]]; then rm -rf "$temporary"; fi
    exit "$1"
}

# ---- Inside: two nodes.

make_nodes() {
    local node
    mount -t tmpfs none /run  # where ip keeps the names of namespaces
    printf '127.0.0.1 localhost\n10.77.0.1 node0\n10.77.0.2 node1\n' >"$folder/hosts"
    mount --bind "$folder/hosts" /etc/hosts
    for node in 0 1; do ip netns add "node$node"; done
    ip link add eth0 netns node0 type veth peer name eth0 netns node1
    for node in 0 1; do
        ip -n "node$node" addr add "10.77.0.$((node + 1))/24" dev eth0
        ip -n "node$node" link set lo up
        ip -n "node$node" link set eth0 up
    done
}

write_corpus() {
    PYTHONPATH="$root:$root/tests" "$python" - "$folder" <<'PYTHON'
import pathlib, sys
from train.corpus import MODEL_ARGUMENTS, write_corpus
folder = pathlib.Path(sys.argv[1])
write_corpus(folder / "corpus")
(folder / "model").write_text("\n".join(MODEL_ARGUMENTS) + "\n")
PYTHON
}

# Starts launch/train.sh on node $1 with $2 processes; the rest are arguments of the run.
start() {
    local node="$1" processes="$2"
    shift 2
    NNODES=2 NPROC="$processes" RDZV_ENDPOINT=node0:29400 MAX_RESTARTS="$restarts" STOP_SECONDS=40 OMP_NUM_THREADS=1 \
        ip netns exec "node$node" unshare --uts "$python" -c \
        'import os, socket, sys; socket.sethostname(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])' "node$node" \
        bash "$root/launch/train.sh" "$@" "${common[@]}" >>"$folder/node$node.log" 2>&1 &
    agents[node]=$!
}

# Starts a run in folder $1 on both nodes, with two processes each, or $2 of the four on the first.
start_both() {
    start 0 "${2:-2}" "--run.dir=$folder/$1"
    start 1 "$((4 - ${2:-2}))" "--run.dir=$folder/$1"
}

fail() {
    local node
    for node in 0 1; do
        echo "---- the last lines of node $node"
        grep -v '^  ' "$folder/node$node.log" | tail -n 30 || true
    done
    say "FAILED: $*"
    exit 1
} >&2

# Waits for at most $1 seconds for $2, which is there when the rest of the arguments, a command, succeeds.
await() {
    local until=$((SECONDS + $1)) what="$2"
    shift 2
    until "$@"; do
        if ((SECONDS > until)); then fail "no sign of $what"; fi
        sleep 0.1
    done
}

has_ended() { ! kill -0 "${agents[$1]}" 2>/dev/null; }

# Waits for the agent of node $1 to end; its exit code is left in `code`.
finish() {
    await "$limit" "the end of node $1" has_ended "$1"
    code=0
    wait "${agents[$1]}" || code=$?
}

finish_both() {
    local node
    for node in 0 1; do
        finish "$node"
        if ((code)); then fail "torchrun on node $node ended with $code"; fi
    done
}

steps_of() {
    local lines=0
    if [[ -e "$folder/$1/metrics.jsonl" ]]; then lines="$(wc -l <"$folder/$1/metrics.jsonl")"; fi
    echo "$lines"
}
is_past() { (($(steps_of "$1") >= $2)) && compgen -G "$folder/$1/checkpoints/step-*/manifest.json" >/dev/null; }
# Whether only torchrun is left on node $1. It may say nothing: that of node 1 waits for what it asked the lost node 0.
left_alone() { (($(ip netns pids "node$1" | wc -l) == 1)); }
told() { grep -q "$2" "$folder/node$1.log"; }

# As when the power goes: nothing more comes from the node, not even that its connections are closed.
lose() {
    ip -n "node$1" link set eth0 down
    ip netns pids "node$1" | xargs -r kill -KILL
    wait "${agents[$1]}" 2>/dev/null || true
}

# ---- The four parts.

uneven_nodes() {
    local node
    say "1. nodes of 3 and 1 processes"
    restarts=0
    start_both uneven 3
    for node in 0 1; do
        finish "$node"
        if ! ((code)); then fail "node $node did not refuse uneven nodes"; fi
    done
    told 0 "different numbers of processes: 1 on node1, 3 on node0" || fail "node 0 did not tell why it ended"
    restarts=3
    say "   refused: $(grep -o 'the nodes have different.*: 1 on node1, 3 on node0' "$folder/node0.log" | head -n 1)"
}

undisturbed() {
    say "2. a run of $steps steps that nothing happens to: ${arguments[*]}"
    start_both undisturbed
    finish_both
    if (($(steps_of undisturbed) != steps)); then fail "$(steps_of undisturbed) steps are recorded, not $steps"; fi
    say "   done"
}

disturbed() {
    local other=$((1 - lost)) at
    say "3. the same run; node $lost will be lost after step $kill_at or a little later"
    start_both disturbed
    await "$limit" "step $kill_at" is_past disturbed "$kill_at"
    lose "$lost"
    at="$(steps_of disturbed)"
    if ((at >= steps)); then fail "the run was over before node $lost could be lost"; fi
    say "   lost node $lost after step $at: its cable is cut, its processes are killed"
    await "$limit" "processes of node $other that notice and end" left_alone "$other"
    if ((lost == 1)); then await "$limit" "their exit code, 76" told 0 "exitcode: 76"; fi
    say "   the processes of node $other have noticed and ended"
    ip -n "node$lost" link set eth0 up
    start "$lost" 2 "--run.dir=$folder/disturbed"
    say "   node $lost is back, and started again by the same line"
    if ((lost == 0)); then
        finish 1  # as soon as it learns from node 0 that its connection is none any more
        if ! ((code)); then fail "torchrun on node 1 ended with 0 though the run is not done"; fi
        start 1 2 "--run.dir=$folder/disturbed"
        say "   torchrun on node 1 ended with $code, as its meeting point was gone, and is started again too"
    fi
    await "$limit" "a run that goes on from a checkpoint" told 0 "resumed from $folder/disturbed/"
    say "   $(grep -o "resumed from $folder/disturbed/.*" "$folder/node0.log" | tail -n 1)"
    finish_both
    if (($(steps_of disturbed) != steps)); then fail "$(steps_of disturbed) steps are recorded, not $steps"; fi
    say "   done"
}

# A shard holds nothing but tensors (weights and optimizer state) and what they are; the same ranks write the same shards.
compare() {
    local last file count=0
    last="$(printf 'checkpoints/step-%08d' "$steps")"
    say "4. the last checkpoints"
    for file in "$folder/undisturbed/$last"/*.safetensors; do
        cmp "$file" "$folder/disturbed/$last/${file##*/}" || fail "${file##*/} differs: the disturbed run is another one"
        count=$((count + 1))
    done
    if ((count != 4)); then fail "$count shards in $folder/undisturbed/$last, not 4"; fi
    say "   all $count shards are equal, bit for bit"
}

inside() {
    make_nodes
    write_corpus
    mapfile -t common <"$folder/model"
    common+=("--data.train=$folder/corpus" --model.dropout=0.1 --train.global_batch=8 "--train.steps=$steps"
        "--checkpoint.every=$every" --eval.every=0 --run.device=cpu --run.threads=1 --run.timeout=30
        --log.tensorboard=false "${arguments[@]}")
    uneven_nodes
    undisturbed
    disturbed
    compare
    say "passed"
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"
[[ -x "$python" ]] || python=python3
lost=1 folder="" temporary="" arguments=() restarts=3 steps=60 every=10 kill_at=25 limit=240
agents=()
while (($#)); do
    case "$1" in
        --help | -h) usage; exit 0 ;;
        --lose) lost="${2:-}"; shift 2 || misuse "--lose needs 0 or 1" ;;
        --keep) folder="${2:-}"; shift 2 || misuse "--keep needs a folder" ;;
        *) arguments+=("$1"); shift ;;
    esac
done
[[ "$lost" == [01] ]] || misuse "--lose takes 0 or 1, not '$lost'"
if ((${#arguments[@]} == 0)); then arguments=(--layout.pp=2 --layout.ep=2); fi
if [[ -n "${MULTINODE_INSIDE:-}" ]]; then inside; else outside; fi
