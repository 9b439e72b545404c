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
import tempfile
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

import experiments
import pytest
from experiments import BIN, ROOT, wait_until

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
    # `update` fails where one of many sources is down; the packages decide.
    subprocess.run([*apt, "update"], env=environment, stdout=DEVNULL, stderr=DEVNULL)
    done = subprocess.run(
        [*apt, "install", "--yes", "--no-install-recommends", *PACKAGES],
        **{"env": environment, "stdout": PIPE, "stderr": STDOUT, "text": True},
    )
    if done.returncode:
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
        wait_until((self.folder / "munge" / "socket").exists, "munged listens", 30)
        self.daemon("slurmctld", "-D")
        self.daemon("slurmd", "-D")
        wait_until(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), "the node is idle", 60)

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
            command = [shutil.which(name), *arguments]
            options = {"stdin": DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self.daemons[name] = subprocess.Popen(command, **options)

    def ask(self, *command: str) -> str:
        """A command's output; nothing while the controller does not answer."""
        return subprocess.run(command, stdout=PIPE, stderr=DEVNULL, text=True).stdout

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

        return wait_until(found, f"a job of {rule} is {state}", 300)[0]

    def stop(self) -> None:
        if self.daemons.get("slurmctld"):
            self.ask("scancel", "--user=root")
            for signals in (["--signal=CONT"], ["--signal=KILL", "--full"]):
                end = time.monotonic() + 10
                while self.ask("squeue", "-h") and time.monotonic() < end:
                    time.sleep(0.2)
                if self.ask("squeue", "-h"):
                    self.ask("scancel", "--user=root", *signals)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for file in (ETC / "slurm.conf", ETC / "gres.conf"):
            if file.exists() and file.read_text().startswith(MARK):
                file.unlink()


@pytest.fixture
def cluster():
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
        finally:
            cluster.stop()
            for log in sorted(folder.glob("*.out")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
            shutil.rmtree(folder, ignore_errors=True)


class Experiment(experiments.Experiment):
    """The tiny recipe with changes, its data prepared, run here or on the cluster."""

    def __init__(self, folder: Path, **changes):
        super().__init__(folder, device="auto", figures={"names": ["figure_2"], "formats": ["png"]})
        for part, value in changes.items():
            self.values["recipe"][part] = self.values["recipe"].get(part, {}) | value
        self.run_folder = self.results / "digits" / "resnet" / "seed-0"
        self.looks = folder / "looks.tsv"
        program = folder / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(NVIDIA_SMI.format(log=self.looks))
        program.chmod(0o755)
        self.output = folder / "slurm.out"
        self.run("data", "--config", "device=cpu")  # jobs see the GPUs of the cluster alone

    def submit(self, *arguments: str) -> subprocess.Popen:
        """Snakemake with the SLURM profile, running."""
        paths = [PROFILE / "without-accounting", BIN, self.folder / "bin", os.environ["PATH"]]
        environment = os.environ | {"PATH": ":".join(map(str, paths))}
        for name in ("CUDA_VISIBLE_DEVICES", "SNAKEMAKE_PROFILE"):
            environment.pop(name, None)
        command = [
            *(BIN / "snakemake", "--snakefile", ROOT / "Snakefile", "--workflow-profile", PROFILE),
            # A real cluster is asked more seldom. The other keys stand as the profile has them.
            *("--slurm-init-seconds-before-status-checks", "1"),
            *("--seconds-between-status-checks", "1", "--max-status-checks-per-second", "1"),
            *("--slurm-keep-successful-logs", *arguments),
        ]
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

    def finish(self, process: subprocess.Popen) -> str:
        """Wait for Snakemake, expecting success; what it said."""
        try:
            code = process.wait(600)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = "no end in 600 s"
        said = self.output.read_text()
        assert code == 0, said[-6000:]
        return said

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

    def hold(self) -> int:
        """Stop train_model between two instants, once epoch 3 is done, however fast it is."""
        worker = wait_until(lambda: self.epoch() >= 3 and self.worker(), "epoch 3 is done", 300)
        os.kill(worker, signal.SIGSTOP)
        return worker

    def facts(self) -> dict:
        return json.loads((self.run_folder / "run.json").read_text())

    def bits(self) -> dict[str, bytes]:
        """Every byte of a run's checkpoints and tables."""
        files = [*self.run_folder.glob("*.parquet"), *self.run_folder.glob("checkpoints/*")]
        return {str(path.relative_to(self.run_folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def make_experiment(tmp_path_factory):
    """`make_experiment(training={...})`: the tiny recipe with changes."""
    return lambda **changes: Experiment(tmp_path_factory.mktemp("slurm") / "with space", **changes)
