"""A run of the whole workflow in a folder of its own."""

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Experiment:
    """An experiment in a folder of its own, run by the checkout's real Snakefile."""

    def __init__(self, folder: Path, **changes):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        values = yaml.safe_load((ROOT / "config" / "tiny.yaml").read_text())
        self.values = values | {"device": "cpu"} | changes
        self.results = folder / "results" / self.values["experiment"]

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start it; standard output says all."""
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(self.values))
        command = [BIN / "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2", *arguments]
        with open(self.folder / "output", "w", encoding="utf-8") as output:
            return subprocess.Popen(
                [str(part) for part in command],
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run it to its end."""
        status = self.start(*arguments).wait()
        said = (self.folder / "output").read_text(encoding="utf-8")
        return subprocess.CompletedProcess(arguments, status, said)

    def run(self, *arguments: str) -> str:
        """Run it, expecting success; what Snakemake said."""
        done = self.snakemake(*arguments)
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout


# Two architectures, one swept and one pinned, and two seeds.
CHANGES = {
    "architectures": ["vgg", "resnet"],
    "seeds": [0, 1],
    "figures": {"formats": ["png", "svg", "pdf"]},
    "overrides": [
        {
            "architectures": ["vgg"],
            "recipe": {
                "network": {
                    "name": "vgg11",
                    "convolutions": [1, 1],
                    "width": 4,
                    "hidden_width": 16,
                },
                "sweep": {"learning_rate": 0.05},
            },
        }
    ],
}
