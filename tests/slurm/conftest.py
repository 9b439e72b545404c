"""A real SLURM cluster of one node on loopback, and Snakemake runs that submit to it.

SLURM 22.05 or newer, from the distribution's packages: its daemons run here in the foreground,
with their state in a temporary folder and ports of their own. Two device nodes stand for GPUs;
jobs are given one or the other as on a real cluster, and compute on the CPU since no CUDA is
behind them. Only the configuration must lie in /etc/slurm: Snakemake's jobs drop SLURM_CONF.

Where it cannot run, tests are skipped and say why. NC_INSTALL_SLURM=1 lets them install Debian's
packages; NC_REQUIRE_SLURM=1, for continuous integration, does so too and turns a skip into a
failure on a machine that has apt.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "workflow" / "profiles" / "slurm"
ETC = Path("/etc/slurm")
PACKAGES = ["slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge"]
PROGRAMS = ["slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "munged"]
MARK = "# Written by the tests of neural-collapse, which delete it when they end.\n"

# A cluster's machine has more of everything than this one; nothing here is measured.
SLURM_CONF = """
ClusterName=neural-collapse-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it starts again: usually 120 s.
AuthInfo=socket={folder}/munge/socket,cred_expire=3
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=bf_interval=1,sched_min_interval=0
ReturnToService=2
# Finished jobs stay, so that a test can ask what they were given.
MinJobAge=7200
KillWait=3
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:a100:2
PartitionName=gpu Nodes={host} Default=YES PriorityTier=1 DefMemPerCPU=100 State=UP
PartitionName=urgent Nodes={host} PriorityTier=10 PreemptMode=OFF DefMemPerCPU=100 State=UP
"""
GRES_CONF = """
AutoDetect=off
NodeName={host} Name=gpu Type=a100 File={gpus}
"""

# Found before a real one, it says which job looked for a GPU and which one it was given, and finds
# none: so jobs compute on the CPU on every machine, and their bits can be compared.
NVIDIA_SMI = """#!/bin/sh
printf '%s\\t%s\\t%s\\n' "$SLURM_JOB_ID" "$CUDA_VISIBLE_DEVICES" \\
    "$(tr '\\0' ' ' < /proc/$PPID/cmdline)" >> '{log}'
exit 9
"""


def unavailable(why: str) -> None:
    """Skip; fail where SLURM is required and could have been installed."""
    if os.environ.get("NC_REQUIRE_SLURM") == "1" and shutil.which("apt-get"):
        pytest.fail(f"NC_REQUIRE_SLURM=1, but {why}", pytrace=False)
    pytest.skip(why)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """The first true value of `condition`; fails after a generous time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    pytest.fail(f"not in {seconds:.0f} s: {what}")


def install() -> None:
    """Have SLURM's programs, or skip."""
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        unavailable("snakemake-executor-plugin-slurm is not installed")
    for file in (ETC / "slurm.conf", ETC / "gres.conf"):
        if file.exists() and not file.read_text().startswith(MARK):
            unavailable(f"this machine has a SLURM of its own: {file}")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if not missing:
        return
    wanted = {os.environ.get(name) for name in ("NC_INSTALL_SLURM", "NC_REQUIRE_SLURM")}
    if "1" not in wanted:
        unavailable(f"{missing[0]} is not installed; `make test-slurm` installs it")
    if shutil.which("apt-get") is None:
        unavailable(f"{missing[0]} is not installed, and there is no apt to install it with")
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        [*apt, "update"],
        [*apt, "install", "--yes", "--no-install-recommends", *PACKAGES],
    ):
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        # `update` fails where one of many sources is down; the packages decide.
        if done.returncode and "install" in command:
            unavailable(f"apt cannot install SLURM: {done.stdout.strip()[-500:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """The cluster, and what its controller knows of jobs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        self.daemons: dict[str, subprocess.Popen] = {}

    def run(self, *command: str) -> str:
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ).stdout

    def start(self) -> None:
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        values = {
            "host": self.host,
            "folder": self.folder,
            "controller_port": free_port(),
            "node_port": free_port(),
            "gpus": self.fake_gpus(),
        }
        ETC.mkdir(exist_ok=True)
        (ETC / "slurm.conf").write_text(MARK + SLURM_CONF.format(**values))
        (ETC / "gres.conf").write_text(MARK + GRES_CONF.format(**values))
        names = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        files = [f"--{name}={self.folder}/munge/{name.split('-')[0]}" for name in names]
        self.daemon("munged", "--foreground", "--force", *files)
        wait_for((self.folder / "munge" / "socket").exists, "munged listens", 30)
        self.start_controller()
        self.daemon("slurmd", "-D")
        wait_for(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), "the node is idle", 60)

    def fake_gpus(self) -> str:
        """Numbered device nodes: SLURM shows a job the number, and never opens the device."""
        for number in range(2):
            node = self.folder / f"gpu{number}"
            try:
                os.mknod(node, 0o600 | 0o020000, os.makedev(4, number))
            except OSError as error:
                if Path("/dev/tty1").exists():
                    return "/dev/tty[0-1]"
                unavailable(f"no device nodes can be made here ({error.strerror})")
        return f"{self.folder}/gpu[0-1]"

    def daemon(self, name: str, *arguments: str) -> None:
        # A session of its own: a Ctrl-C for pytest must not stop it before the teardown does.
        with open(self.folder / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                [shutil.which(name), *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def start_controller(self) -> None:
        self.daemon("slurmctld", "-D")

    def stop_controller(self) -> None:
        # Not by a kill: what it had not saved yet, a job's start perhaps, would be forgotten, and
        # the job held as one that failed to start.
        self.daemons["slurmctld"].terminate()
        self.daemons["slurmctld"].wait()

    def ask(self, *command: str) -> str:
        """A command's output; nothing while the controller does not answer."""
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return done.stdout

    def jobs(self, rule: str | None = None) -> list[dict[str, str]]:
        """Every job as scontrol shows it, the oldest first; of one rule if named."""
        jobs = []
        for line in self.ask("scontrol", "show", "job", "--detail", "--oneliner").splitlines():
            facts = dict(re.findall(r"(\S+?)=(\S*)", line))
            found = re.match(r"rule_(.+?)(?:_wildcards_(.*))?$", facts.get("Comment", ""))
            if found:
                facts["rule"], facts["wildcards"] = found.groups()
                jobs.append(facts)
        jobs.sort(key=lambda facts: int(facts["JobId"]))
        return [facts for facts in jobs if rule in (None, facts["rule"])]

    def job(self, rule: str, state: str = "RUNNING") -> dict[str, str]:
        """The one job of a rule in this state, once there is one."""

        def found():
            return [job for job in self.jobs(rule) if job["JobState"] == state]

        return wait_for(found, f"a job of {rule} is {state}")[0]

    def stop(self) -> None:
        if self.daemons.get("slurmctld"):
            self.ask("scancel", "--user=root")
            for number, signals in enumerate((["--signal=CONT"], ["--signal=KILL", "--full"])):
                end = time.monotonic() + 10 + 10 * number
                while self.ask("squeue", "-h") and time.monotonic() < end:
                    time.sleep(0.2)
                if self.ask("squeue", "-h"):
                    self.ask("scancel", "--user=root", *signals)
        for name in ("slurmd", "slurmctld", "munged"):
            daemon = self.daemons.get(name)
            if daemon and daemon.poll() is None:
                daemon.terminate()
                try:
                    daemon.wait(15)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
        for file in (ETC / "slurm.conf", ETC / "gres.conf"):
            if file.exists() and file.read_text().startswith(MARK):
                file.unlink()

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.out"))
        )


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A running cluster. One at a time on a machine: its configuration has only one place."""
    if os.geteuid() != 0:
        unavailable("SLURM's daemons need root here")
    with open(Path(tempfile.gettempdir()) / "neural-collapse-slurm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        install()
        # Not pytest's folder, whose path is too long for munge's socket.
        folder = Path(tempfile.mkdtemp(prefix="nc-slurm-"))
        cluster = Cluster(folder)
        try:
            cluster.start()
            yield cluster
        except BaseException:
            print(cluster.logs())
            raise
        finally:
            cluster.stop()
            shutil.rmtree(folder, ignore_errors=True)


class Experiment:
    """The tiny recipe in a folder of its own, run here or on the cluster."""

    def __init__(self, folder: Path, **changes: Any):
        self.folder = folder
        folder.mkdir(parents=True)
        values = yaml.safe_load((ROOT / "config" / "tiny.yaml").read_text())
        for part, value in changes.items():
            values["recipe"][part] = values["recipe"].get(part, {}) | value
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(values))
        self.results = folder / "results" / values["experiment"]
        self.run_folder = self.results / "digits" / "resnet" / "seed-0"
        self.looks = folder / "looks.tsv"
        program = folder / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(NVIDIA_SMI.format(log=self.looks))
        program.chmod(0o755)
        self.output = folder / "snakemake.out"

    def start(self, *arguments: str) -> subprocess.Popen:
        """Snakemake with these arguments, running."""
        paths = [Path(sys.executable).parent, self.folder / "bin", os.environ["PATH"]]
        environment = os.environ | {"PATH": ":".join(map(str, paths))}
        for name in ("CUDA_VISIBLE_DEVICES", "SNAKEMAKE_PROFILE"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        command += ["--configfile", str(self.config), *arguments]
        with open(self.output, "ab") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # A shell's background job ignores Ctrl-C, and its children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def submit(self, *arguments: str) -> subprocess.Popen:
        """Snakemake with the SLURM profile, running."""
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{PROFILE / 'without-accounting'}:{path}"
        try:
            return self.start(
                *("--workflow-profile", str(PROFILE), "--slurm-keep-successful-logs"),
                # A real cluster is asked more seldom. The other keys stand as the profile has them.
                *("--slurm-init-seconds-before-status-checks", "2"),
                *("--seconds-between-status-checks", "2", "--max-status-checks-per-second", "1"),
                *arguments,
            )
        finally:
            os.environ["PATH"] = path

    def finish(self, process: subprocess.Popen, seconds: float = 600) -> str:
        """Wait for Snakemake, expecting success; what it said."""
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            pytest.fail(f"Snakemake did not end in {seconds:.0f} s:\n{self.said()[-6000:]}")
        assert code == 0, self.said()[-6000:]
        return self.said()

    def said(self) -> str:
        return self.output.read_text()

    def epoch(self) -> int:
        """The newest epoch that train_model has a resume state of; -1 before the first."""
        states = (self.results / ".state").glob("digits-resnet-seed-0/*/state-*.safetensors")
        return max((int(path.stem.split("-")[1]) for path in states), default=-1)

    def worker(self) -> int | None:
        """The process of train_model, if it runs."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                here = (entry / "cwd").resolve() == self.folder.resolve()
            except OSError:
                continue
            # The program itself, not the shells that carry its line as one argument.
            if here and b"train-model" in words:
                return int(entry.name)
        return None

    def hold(self, epoch: int = 3) -> int:
        """Stop train_model between two instants, once `epoch` is done, however fast it is."""
        wait_for(lambda: self.epoch() >= epoch and self.worker(), f"epoch {epoch} is done", 300)
        worker = self.worker()
        assert worker is not None, "train_model ended before it could be stopped"
        os.kill(worker, signal.SIGSTOP)
        return worker

    def facts(self) -> dict[str, Any]:
        return json.loads((self.run_folder / "run.json").read_text())

    def bits(self) -> dict[str, bytes]:
        """Every byte of a run's checkpoints and tables."""
        files = [*self.run_folder.glob("*.parquet"), *self.run_folder.glob("checkpoints/*")]
        return {str(path.relative_to(self.run_folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def make_experiment(tmp_path_factory):
    """`make_experiment(training={...})`: the tiny recipe with changes."""

    def make(**changes: Any) -> Experiment:
        return Experiment(tmp_path_factory.mktemp("slurm") / "with space", **changes)

    return make


@pytest.fixture(scope="session")
def wait():
    """`wait(condition, what, seconds)`."""
    return wait_for
