#!/usr/bin/env bash
# Does a start from phantoms help on few real radiographs? Trains few_classifier.py with each seed twice, from a random start
# and from phantom_few_classifier.py of the same seed, one training after the other, and prints the paired difference.
#
#   experiments/from_phantoms/train.sh PREPARED_RADIOGRAPHS OUT [SEEDS]
#
# In a checkout, where keras-pneumo is installed (or KERAS_PNEUMO says how it is called). Interrupted, the same command goes on.
# PREPARED_RADIOGRAPHS has images of 128 pixels. IMAGES, PHANTOM_EXPERIMENT and EXPERIMENT change what is trained.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$(realpath "${1:?Name the prepared folder of the radiographs.}")
out=${2:?Name a folder for the runs.}
seeds=${3:-5}
read -ra kp <<<"${KERAS_PNEUMO:-keras-pneumo}"
mkdir -p "$out"

[ -e "$out/phantom_prepared/manifest.json" ] || {
    "${kp[@]}" phantom "$out/phantom" --images "${IMAGES:-900}" --seed 0 --size-scale 1
    "${kp[@]}" prepare "$out/phantom" --out "$out/phantom_prepared" --size 128
}

# train NAME EXPERIMENT SEED DATA [OPTIONS]: into OUT/NAME_SEED, unless it is finished.
train() {
    local folder=$out/$1_$3
    [ -e "$folder/report.html" ] || nice -n 2 "${kp[@]}" train "$2" --seed "$3" --data "$4" --out "$folder" "${@:5}"
}

for ((seed = 0; seed < seeds; seed++)); do
    train phantoms "${PHANTOM_EXPERIMENT:-experiments/phantom_few_classifier.py}" "$seed" "$out/phantom_prepared"
    train random "${EXPERIMENT:-experiments/few_classifier.py}" "$seed" "$data"
    train from_phantoms "${EXPERIMENT:-experiments/few_classifier.py}" "$seed" "$data" --start-from "$out/phantoms_$seed"
done
"${PYTHON:-python3}" experiments/from_phantoms/table.py "$data" "$out" | tee "$out/table.txt"
