#!/usr/bin/env bash
# Tests, timings and one cell of the paper in 15 minutes on a GPU, without Snakemake or a network.
#
#   gpu_window.sh prepare MIRROR   where there is a network: wheels and MNIST into .gpu-window
#   gpu_window.sh first            on the GPU, ten minutes: tests, check-gpu, a cell of the paper
#   gpu_window.sh second           at once after it: the rest of the cell, reference loops
#
# NC_WINDOW_TESTS=0, for the first command alone, leaves tests and check-gpu to the second one, so that
# a whole cell fits: its checkpoints are measured while the training goes on.
#
# Each step has its own time limit; one that fails does not end the others. What comes back lies in
# $OUT: log.txt, which grows as steps go on, check-gpu.json, and results.tar.gz: of tables, learning
# curve, facts of the run and of the newest state what there is by then.
set -uo pipefail
cd "$(dirname "$0")/.."
here=.gpu-window
# Main memory where it has 32 GiB to spare: 50 checkpoints and states of VGG11 are 17 GB to write.
spare=$(df --output=avail /dev/shm 2>/dev/null | tail -1)
if [ -d /dev/shm/nc-gpu-window ] || [ "${spare:-0}" -gt $((32 << 20)) ]; then
  work=${NC_WINDOW_FOLDER:-/dev/shm/nc-gpu-window} # also for the command after one that filled it
else
  work=${NC_WINDOW_FOLDER:-/tmp/nc-gpu-window}
fi
# Elsewhere, since /dev/shm may be mounted noexec.
site=${NC_WINDOW_FOLDER:-/tmp/nc-gpu-window}/site
out=${OUT:-$work/out}
config=${NC_WINDOW_CONFIG:-config.yaml}
dataset=${NC_WINDOW_DATASET:-mnist}
device=${NC_WINDOW_DEVICE:-cuda}
python=${PYTHON:-python3}
gpus=$([ "$device" = cuda ] && echo 1 || echo 0)
cell=$work/cell

prepare() {
  local wheels=$here/wheels
  rm -rf $here && mkdir -p $wheels || exit 1
  for name in pydantic pydantic-core annotated-types typing-extensions typing-inspection \
    rich-argparse; do
    sed -n "s/^\($name==[^ ;]*\).*/\1/p" requirements.lock
  done > $here/names
  $python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    -d $wheels -r $here/names || exit 1
  cp -r "$1/mnist" $here/ && git rev-parse HEAD > $here/commit || exit 1
  du -ah $here/wheels/*.whl $here/mnist
  echo "travels: $( (git ls-files -z; find $here -type f -print0) | du -cm --files0-from=- | tail -1 | cut -f1) of 64 MiB"
}

# step NAME SECONDS COMMAND...
step() {
  local name=$1 limit=$2 began=$SECONDS status
  shift 2
  if [ "$limit" -lt 5 ]; then
    echo "== $name: left out, no time is left" | tee -a "$out/log.txt"
    return 124
  fi
  echo "== $name, at most $limit s" | tee -a "$out/log.txt"
  # Interrupted, pytest says what has failed so far; other programs end at once.
  timeout -s "${signal:-TERM}" -k 5 "$limit" "$@" 2>&1 | tee -a "$out/log.txt"
  status=${PIPESTATUS[0]}
  keep
  echo "== $name: status $status after $((SECONDS - began)) s, $SECONDS s in all" | tee -a "$out/log.txt"
  return "$status"
}

# What there is so far, since a machine may be taken away.
keep() {
  $python - "$work" "$out" <<'PYTHON'
import json, os, shutil, sys, tarfile
from pathlib import Path

work, out = map(Path, sys.argv[1:])
for state in sorted(work.glob("state/*/state-*.safetensors"), key=lambda path: path.name)[-1:]:
    with open(state, "rb") as file:
        facts = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    facts["facts"] = json.loads(facts["facts"])  # the learning curve so far
    (work / "cell" / "state.json").write_text(json.dumps(facts))
if (work / "check-gpu.json").exists():
    shutil.copy(work / "check-gpu.json", out)
found = [*(work / "cell").glob("*.json"), *(work / "cell").glob("*.parquet")]
found += [work / "so-far", work / "tables"]
new = out / f"new-{os.getpid()}"  # another step may end at the same time
with tarfile.open(new, "w:gz") as archive:
    for path in found:
        if path.exists():
            archive.add(path, path.relative_to(work))
new.replace(out / "results.tar.gz")
PYTHON
}

# What is left of the command, less what later steps need.
left() { echo $((ends - SECONDS - $1)); }

at_most() { echo $(($1 < ends - SECONDS - 5 ? $1 : ends - SECONDS - 5)); }

nc() { step "$1" "$2" $python -m neural_collapse "${@:3}"; }

facts() {
  nvidia-smi
  $python -c 'import importlib.util as u, sys, torch
print(sys.version, torch.__version__, torch.version.cuda, torch.backends.cudnn.version())
names = "pydantic rich_argparse httpx pandas pyarrow safetensors sklearn pytest xdist".split()
print("missing here:", *[name for name in names if u.find_spec(name) is None])'
  df -h "$work" && dd if=/dev/zero of="$work/zeros" bs=64M count=8 conv=fsync; rm -f "$work/zeros"
}
export -f facts; export here python work

# The cell: recipe.json beside the data; ResNet18 where its training fits, else VGG11.
choose() {
  $python - "$config" "$dataset" "$work" "$1" <<'PYTHON'
import json, sys
from pathlib import Path
from neural_collapse.experiment.config import load_config, resolve_recipe
from neural_collapse.experiment.cost import data_size
from neural_collapse.experiment.recipe import write_recipe
from neural_collapse.networks.registry import label

config, dataset, work, seconds = load_config(sys.argv[1]), *sys.argv[2:]
try:
    timed = json.loads(Path(work, "check-gpu.json").read_text())["networks"]
except (OSError, ValueError):
    timed = []
for architecture in sorted({"resnet", "vgg"} & set(config.architectures)):
    recipe = resolve_recipe(config, dataset, architecture)
    size, training = data_size(config, recipe), recipe.training
    ways = [s for s in timed if s["network"] == label(recipe.network) and s["channels_last"]
            and not s["failure"] and s["precision"] != "bfloat16"]
    best = max(ways, key=lambda s: s["images_per_second"], default=None)
    if best is None:  # not timed: the smallest network is the most that is safe
        continue
    training = training.model_copy(update={k: best[k] for k in ("precision", "cuda_graphs")})
    # A step is three forward passes; both sets are evaluated after each epoch.
    images = training.epochs * (size.train + (size.train + size.test) / 3)
    print(f"{label(recipe.network)}: about {images / best['images_per_second']:.0f} s in {best}")
    if images / best["images_per_second"] < float(seconds):
        break
# The paper's winner on MNIST; VGG11's is not published.
sweep = recipe.sweep.model_copy(update={"learning_rate": 0.0679})
recipe = recipe.model_copy(update={"training": training, "sweep": sweep})
write_recipe(recipe, Path(work, "cell", "recipe.json"))
Path(work, "data-recipe.json").write_text(recipe.data.model_dump_json())
PYTHON
}

job() { # NAME SECONDS [options]: a job of the cell
  nc "$1" "$2" "$1" --recipe "$cell/recipe.json" "${@:3}"
}

train() {
  [ -e "$cell/run.json" ] || job train-model "$1" --data-folder "$work/data" --seed 0 \
    --checkpoint-folder "$cell/checkpoints" --history "$cell/history.parquet" \
    --run-facts "$cell/run.json" --state-root "$work/state" --device "$device" --gpus "$gpus"
}

first() {
  ends=${NC_WINDOW_SECONDS:-590}
  [ "${NC_WINDOW_TESTS:-120}" = 0 ] || checks
  step choose 20 bash -c "choose $(left 60)" || return
  nc download 20 download-dataset --dataset "$dataset" --output-folder "$work/raw"
  nc prepare 60 prepare-dataset --dataset "$dataset" --raw-folder "$work/raw" --workers 8 \
    --output-folder "$work/data" --data-recipe "$(cat "$work/data-recipe.json")"
  whole_cell 30
}

second() {
  ends=${NC_WINDOW_SECONDS:-285}
  whole_cell 100
  step bench "$(left 120)" $python -m benchmarks --form gpu \
    --only "measurement of a checkpoint" deepfool
  [ -e "$work/checked" ] || checks
}

checks() {
  touch "$work/checked"
  step facts "$(at_most 40)" bash -c facts
  signal=INT step tests "$(at_most "${NC_WINDOW_TESTS:-120}")" \
    $python -m pytest -v -p no:cacheprovider -m gpu -rf --durations=9 \
    $($python -c 'import xdist' 2>/dev/null && echo '-n=8') \
    tests/unit/training tests/unit/collapse/test_metric.py tests/integration/test_papers_cells.py
  nc check-gpu "$(at_most 90)" check-gpu --quick --config "$config" --output "$work/check-gpu.json"
}

# whole_cell SECONDS: trains until so much time is left, and measures what is not measured yet. Tables
# without the attack come first, since its time is not known.
whole_cell() {
  [ ! -e "$work/whole" ] || return 0
  local along attack
  local common=(--data-folder "$work/data" --checkpoint-folder "$cell/checkpoints"
    --device "$device" --gpus "$gpus")
  export NC_GPU_SLOTS=2 # training and measurement, then measurement and attack share the GPU
  rm -f "$work/trained"
  if [ ! -e "$cell/statistics.parquet" ]; then
    step along "$(left 20)" $python -m benchmarks.measure_along "$work" "$device" "$gpus" &
    along=$!
  fi
  train "$(left "$1")"
  touch "$work/trained"
  if [ -e "$cell/run.json" ] && [ ! -e "$cell/robustness.parquet" ]; then
    job measure-robustness "$(left 15)" "${common[@]}" --seed 0 \
      --output "$cell/robustness.parquet" --state-root "$work/r" &
    attack=$!
  fi
  [ -z "${along:-}" ] || wait "$along"
  [ ! -e "$cell/statistics.parquet" ] || rm -rf "$work/so-far"
  [ -e "$cell/run.json" ] || return
  if [ ! -e "$cell/statistics.parquet" ]; then
    job extract-features "$(left 40)" "${common[@]}" --output-folder "$cell/features" --seed 0 \
      --state-root "$work/f"
    job compute-statistics "$(left 25)" --features-folder "$cell/features" --seed 0 \
      --statistics "$cell/statistics.parquet" --activations "$cell/activations.parquet"
  fi
  tables "$(left 15)"
  if [ -n "${attack:-}" ]; then
    wait "$attack" && tables "$(left 5)" && touch "$work/whole"
  fi
}

tables() {
  local made=()
  for table in statistics robustness activations; do
    [ -e "$cell/$table.parquet" ] && made+=("--$table" "$cell/$table.parquet")
  done
  nc tables "$1" collect-tables --output-folder "$work/tables" --runs "$cell/run.json" \
    --recipes "$cell/recipe.json" --histories "$cell/history.parquet" "${made[@]}" &&
    nc compare "$(left 0)" compare-with-paper --tables-folder "$work/tables" \
      --output-folder "$work/tables"
}

mkdir -p "$out" "$cell"
case ${1:-} in
  prepare) prepare "${2:?the mirror folder, which holds mnist/}"; exit ;;
  first | second) ;;
  *) sed -n '2,9s/^# \?//p' "$0"; exit 2 ;;
esac
if [ -d $here/wheels ] && [ ! -d "$site" ]; then
  $python -m pip install -q --no-index --no-deps --no-compile --target "$site" $here/wheels/*.whl
fi
export PYTHONPATH=$PWD/workflow:$PWD:$site PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
if ! $python -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ("pydantic", "rich_argparse", "torch"))))'; then
  echo "gpu_window.sh: Python packages are missing; run its prepare first and bring $here along" >&2
  exit 2
fi
export NC_DATA_MIRROR=${NC_DATA_MIRROR:-$PWD/$here}
# What a command cut off loses at most; the next one goes on from there.
export NC_STATE_SECONDS=${NC_STATE_SECONDS:-20}
echo "commit $(cat $here/commit 2>/dev/null)" | tee -a "$out/log.txt"
export -f choose; export config dataset work
"$1"
