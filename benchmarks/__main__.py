"""``python -m benchmarks``, run from the repository root."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

try:
    import neural_collapse  # noqa: F401
except ModuleNotFoundError:  # not installed: the library of this checkout
    sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

from neural_collapse.io.errors import UserError
from neural_collapse.training.devices import keep_freed_memory

from . import cases, harness

FORMS = {
    "short": "minutes on two CPU cores",
    "full": "every size on the CPU",
    "gpu": "one GPU against the same loops on it",
}
OUTPUT = Path("results/benchmarks")


def main() -> int:
    cases.load_all()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="This project against reference loops, as ratios from one run.",
        epilog="NC_DATA_MIRROR: a folder with mnist/*.gz; otherwise images come from packages.",
    )
    forms = "; ".join(f"{name}: {text}" for name, text in FORMS.items())
    known = ", ".join(harness.CASES)
    parser.add_argument("--form", choices=FORMS, default="short", help=forms)
    parser.add_argument("--only", nargs="+", metavar="CASE", default=[], help=f"of: {known}")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.only) - harness.CASES.keys())
    if unknown:
        parser.error(f"no case is called {unknown[0]!r}; known: {known}")
    try:
        run(arguments.form, arguments.only)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run(form: str, only: list[str]) -> None:
    settings = harness.Settings(form, os.environ.get("NC_DATA_MIRROR"))
    if settings.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--form gpu: torch finds no GPU here; take --form short or full")
        # As in the pipeline's jobs, before CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    keep_freed_memory()  # as the pipeline's jobs do; the references gain as well
    facts = harness.environment(settings.device)
    rows = []
    started = time.monotonic()
    for name, case in harness.CASES.items():
        if name not in only if only else form not in case.forms:
            continue
        print(f"{name} ({time.monotonic() - started:.0f} s)", flush=True)
        results = harness.Results(name, say=lambda text: print(text, flush=True))
        case.run(settings, results)
        rows += results.rows
    facts["seconds"] = round(time.monotonic() - started)
    frame = harness.table(rows)
    harness.write(frame, facts, OUTPUT, form)
    print(f"\n{OUTPUT / form}.md:\n\n{harness.markdown(frame, facts)}")


if __name__ == "__main__":
    sys.exit(main())
