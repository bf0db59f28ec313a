#!/usr/bin/env bash
# From nothing to a trained model: installs, collects text that is on this machine already, trains a vocabulary,
# writes the indexed corpus, trains a small Switch Transformer on 4 processes (pipeline x expert x data parallel),
# goes on from its checkpoint on 2 processes in another layout, scores it and lets it fill in masked spans.
# Under ten minutes on two cores. Call it again at any time: finished parts are not done twice.
#
#   bash launch/quickstart.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh

bin="$PWD/.venv/bin"
data="runs/quickstart-data"
config="launch/configs/quickstart.toml"
half=300
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 OMP_NUM_THREADS=1
mkdir -p "$data"

say() { printf '\n== %s\n' "$*"; }

# Runs the rest of its arguments unless the file named first is there already.
once() {
    local result="$1"
    shift
    if [[ -e "$result" ]]; then echo "$result is there already"; else "$@"; fi
}

train() {
    local processes="$1"
    shift
    "$bin/torchrun" --standalone --nproc-per-node "$processes" -m megaswitch train --config "$config" "$@"
}

say "1. Text: the documentation that ships with Python, torch and numpy"
once "$data/docs.jsonl" "$bin/python" data_prep/collect.py docs --output "$data/docs.jsonl"

say "2. Vocabulary: 3,996 sentencepiece pieces and 100 sentinels"
once "$data/vocabulary.model" "$bin/python" data_prep/train_tokenizer.py \
    --input "$data/docs.jsonl" --vocab-size 3996 --output "$data/vocabulary.model"

say "3. Corpus: token ids in .bin and .idx"
once "$data/corpus.idx" "$bin/python" data_prep/preprocess.py \
    --input "$data/docs.jsonl" --tokenizer "$data/vocabulary.model" --output "$data/corpus" --workers 2

say "4. Training on 4 processes: pipeline 2 x data 2, experts spread over the data-parallel ranks; stops half way"
train 4 --layout.pp=2 --layout.ep=2 --train.stop_after="$half"

say "5. The same run goes on from its checkpoint on 2 processes: no pipeline, experts over 2 ranks"
train 2 --layout.pp=1 --layout.ep=2

say "6. What it learned"
"$bin/megaswitch" eval --config "$config"
"$bin/megaswitch" fill --run runs/quickstart --tokenizer "$data/vocabulary.model" \
    "Return the <extra_id_0> of the array <extra_id_1> the given axis." \
    "If the file does not <extra_id_0>, an error is <extra_id_1>." \
    "Returns a new <extra_id_0> with the same shape as the input."

say "Look at the run: $bin/tensorboard --logdir runs/quickstart/tb"
echo "Its record is runs/quickstart/metrics.jsonl, its complete configuration runs/quickstart/config.toml."
