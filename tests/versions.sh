#!/usr/bin/env bash
# The tests that compute, on every Python that pyproject.toml allows and with the oldest torch.
# Needs uv, which finds installed Pythons; one that is not installed is skipped, and said.
# Environments are kept in .venvs, some 6 GB each, and used again.
set -uo pipefail
cd "$(dirname "$0")/.."

export UV_PYTHON_DOWNLOADS=never
PATH=$PATH$(printf ':%s' ~/.pyenv/versions/*/bin)
oldest_torch=$(sed -n 's/^ *"torch>=\([0-9.]*\)",/\1/p' pyproject.toml)
oldest_torchvision=$(sed -n 's/^ *"torchvision>=\([0-9.]*\)",/\1/p' pyproject.toml)
command -v uv >/dev/null || { echo "uv is not installed: tests of other versions are skipped"; exit 0; }

failed=0
for pair in 3.11:oldest 3.12:oldest 3.12:locked 3.13:locked; do
  python=${pair%:*} torch=${pair#*:}
  if ! uv python find --quiet "$python" >/dev/null 2>&1; then
    echo "Python $python is not installed: skipped"
    continue
  fi
  venv=.venvs/$python-$torch
  if ! test -e "$venv/.made" || test requirements.lock -nt "$venv/.made" -o pyproject.toml -nt "$venv/.made"; then
    uv venv --quiet --clear --python "$python" "$venv" || exit 1
    uv pip sync --quiet --python "$venv/bin/python" requirements.lock || exit 1
    if test "$torch" = oldest; then
      uv pip install --quiet --python "$venv/bin/python" \
        "torch==$oldest_torch.*" "torchvision==$oldest_torchvision.*" || exit 1
    fi
    uv pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation -e . || exit 1
    touch "$venv/.made"
  fi
  "$venv/bin/python" -c 'import sys, torch; print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")'
  "$venv/bin/python" -m pytest -q -n 2 -p no:cacheprovider -m "not slow" "$@" || failed=1
done
exit $failed
