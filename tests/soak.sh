#!/usr/bin/env bash
# Trains for half an hour while a fault happens every 20 seconds, and looks whether it ends as if none had. See --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash tests/soak.sh [--minutes M] [--every SECONDS] [--seed N] [--keep DIR]

  bash tests/soak.sh                   30 minutes, a fault every 20 seconds
  bash tests/soak.sh --minutes 5       shorter

Two processes train under torchrun. Faults come from a seeded list: a worker killed or stopped, a signal to torchrun, a full
disk, damaged checkpoints, files in the way. In the end the weights must be those of a run that nothing happened to, bit for bit;
memory, open files and the folder's size must not have grown. Says "passed" and ends with 0, or says what is wrong and ends with 1.

  --minutes M      how long (default 30); the undisturbed run to the same step comes after it and is not counted
  --every SECONDS  between two faults (default 20)
  --seed N         which faults, in which order (default 0)
  --keep DIR       put runs and logs there, and keep them (default: a temporary folder, removed at the end)
TEXT
}

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
    usage
    exit 0
fi
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"
[[ -x "$python" ]] || python=python3
PYTHONPATH="$root:$root/tests" exec "$python" "$root/tests/faults/soak.py" "$@"
