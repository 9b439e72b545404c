"""Provenance of a result: versions, commit, machine, recipe and data."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__

LIBRARY = Path(__file__).parents[1]
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "pyarrow", "safetensors", "snakemake")


@cache
def commit() -> str | None:
    """The commit that the library's source stands at, '+changes' added where it was edited."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(LIBRARY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # A copy installed inside another git repository must not report that commit.
        git("ls-files", "--error-unmatch", "--", "__init__.py")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Python's and the packages' versions that decide numbers."""
    found = {"python": platform.python_version(), "neural_collapse": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: Any = None) -> dict[str, Any]:
    """Where it ran: system, processor, and the GPU of a torch `device`."""
    facts: dict[str, Any] = {"system": platform.platform(), "processor": _processor()}
    if device is not None:
        import torch

        facts["device"] = device.type
        facts["threads"] = torch.get_num_threads()
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            facts["gpu"] = properties.name
            facts["compute_capability"] = f"{properties.major}.{properties.minor}"
            facts["gpu_uuid"] = str(getattr(properties, "uuid", "")) or None
            facts["cuda"] = torch.version.cuda
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def provenance(device: Any = None) -> dict[str, Any]:
    """Versions, commit, machine and command of this process, for a result's run.json."""
    return {
        "versions": versions(),
        "commit": commit(),
        "machine": machine(device),
        "command": ["python -m neural_collapse", *sys.argv[1:]],
    }


def code_hash(*modules: str) -> str:
    """A hash of source files of this library, given relative to it; a folder stands for its files.

    Snakemake does not see that an imported module changed: this hash, as a rule's parameter,
    makes a cheap stage run again when the code that decides its result does.
    """
    digest = hashlib.sha256()
    for module in modules:
        path = LIBRARY / module
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
