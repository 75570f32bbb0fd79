#!/usr/bin/env bash
# From a folder of photographs and a table of their tags to a net that finds the tags, by the commands one would type.
#
#     examples/tags/run.sh [FOLDER] [IMAGES]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/output}
images=${2:-400}
python=${PYTHON:-$here/../../.venv/bin/python}
command="$python -m multilabel_softmax_loss"

rm -rf "$folder"
mkdir -p "$folder"
$python "$here/make_source.py" "$folder" --images "$images"
cd "$folder"

step() {  # say a command as one would type it, then run it
    printf '\n$ python -m multilabel_softmax_loss'
    printf ' %q' "$@"
    printf '\n'
    $command "$@"
}

# 1. Look at what is there. Nothing is written.
step convert tags.csv --images photos --out tags --size 64 --max-bad 5% --dry-run

# 2. Write the databases and a net that reads them.
step convert tags.csv --images photos --out tags --size 64 --max-bad 5%

# 3. Train it.
step train tags/solver.prototxt --out tags/run --preprocessing tags/preprocessing.json

# 4. How good is it?
step evaluate tags/train_val.prototxt tags/run/best.caffemodel --classes tags/classes.txt --tune-thresholds tags/thresholds.json

# 5. The net for use, and its answers for some photographs.
step deploy tags/train_val.prototxt --weights tags/run/best.caffemodel
step predict tags/deploy.prototxt tags/run/best.caffemodel "photos/holiday 000.jpg" "photos/holiday 001.jpg" \
    "photos/holiday 002.jpg" --classes tags/classes.txt --thresholds tags/thresholds.json --at-least-one

# 6. The same photographs with labels of which some are unknown, and without a conversion: the layer reads the files.
step convert checked.txt --images photos --classes names.txt --out checked --to index --size 64 --max-bad 5%
step train checked/solver.prototxt --out checked/run --preprocessing checked/preprocessing.json
