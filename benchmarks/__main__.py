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
MOST_CORES = 8
"""Each holds one job of every variant in memory, all of a case at once."""


def main() -> int:
    cases.load_all()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="This project against reference loops, as ratios from one run.",
    )
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="short",
        help="; ".join(f"{k}: {v}" for k, v in FORMS.items()),
    )
    parser.add_argument(
        "--only", nargs="+", metavar="CASE", default=[], help=f"of: {', '.join(harness.CASES)}"
    )
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"))
    parser.add_argument(
        "--rounds", type=int, help="timed rounds of each case; 2 in the short form, else 3"
    )
    parser.add_argument(
        "--mirror",
        default=os.environ.get("NC_DATA_MIRROR"),
        help="a folder with mnist/*.gz; without it, images that ship with packages",
    )
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.only) - harness.CASES.keys())
    if unknown:
        parser.error(f"no case is called {unknown[0]!r}; known: {', '.join(harness.CASES)}")
    try:
        run(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run(arguments: argparse.Namespace) -> None:
    device = None
    if arguments.form == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--form gpu: torch finds no GPU here; take --form short or full")
        device = torch.device("cuda")
        # As in the pipeline's jobs, before CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    else:
        harness.limit_cores(MOST_CORES)
    keep_freed_memory()  # as the pipeline's jobs do; of what is timed here, references gain as well
    rounds = arguments.rounds or (2 if arguments.form == "short" else 3)
    settings = harness.Settings(arguments.form, arguments.mirror, rounds)
    facts = harness.environment(device)
    rows = []
    started = time.monotonic()
    for name, case in harness.CASES.items():
        if name not in arguments.only if arguments.only else arguments.form not in case.forms:
            continue
        print(f"{name} ({time.monotonic() - started:.0f} s)", flush=True)
        results = harness.Results(name, say=lambda text: print(text, flush=True))
        case.run(settings, results)
        rows += results.rows
    facts["seconds"] = round(time.monotonic() - started)
    frame = harness.table(rows)
    harness.write(frame, facts, arguments.output, arguments.form)
    print(f"\n{arguments.output / arguments.form}.md:\n\n{harness.markdown(frame, facts)}")


if __name__ == "__main__":
    sys.exit(main())
