"""DeepSpeed and Tutel: their environment, and how a benchmark talks to them.

Their environment sees this one's packages (so that both sides run on the same torch) and adds what is theirs. They work
in a process of their own, `peer_worker.py`, on inputs from a file, and do one round when they are told to.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from benches.timing import Taken
from megaswitch.data.prep.command import say
from megaswitch.utils.errors import MissingInputError

DEEPSPEED = "deepspeed==0.19.8"
TUTEL = "git+https://github.com/microsoft/Tutel@ac0e51b943bb7084d4a6a7243e44a4afe04b9911"
WORKER = Path(__file__).parent / "peer_worker.py"
NAMES = {"deepspeed": "DeepSpeed", "tutel": "Tutel"}


def install(folder: str) -> None:
    """Make the environment; raises MissingInputError when neither peer can be had, and says which one cannot."""
    home = Path(folder).absolute()
    if not _python(home).exists():
        venv.EnvBuilder(with_pip=True, symlinks=True).create(home)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (home / "lib" / version / "site-packages" / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    source = os.environ.get("TUTEL_SOURCE", TUTEL)
    arguments = {
        "deepspeed": ["--no-build-isolation", DEEPSPEED],
        "tutel": ["--no-build-isolation", "--no-deps", source],
    }
    had = [name for name, asked in arguments.items() if name in available(folder) or _pip(home, NAMES[name], asked)]
    if not had:
        raise MissingInputError(f"no peer could be installed into {home}; benchmarks will run our side alone")
    print(f"{home}: {', '.join(NAMES[name] for name in had)}")


def _pip(home: Path, name: str, asked: list[str]) -> bool:
    environment = {**os.environ, "NO_CUDA": "1", "DS_BUILD_OPS": "0"}
    command = [str(_python(home)), "-m", "pip", "install", "--quiet", *asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        say(f"{name} cannot be installed ({reason}); without a network give TUTEL_SOURCE=DIR, a checkout of Tutel")
    return done.returncode == 0


def _python(home: Path) -> Path:
    return home / "bin" / "python"


def available(folder: str) -> list[str]:
    """The peers that can be imported in the environment."""
    python = _python(Path(folder))
    if not python.exists():
        return []
    code = "import importlib.util as u; print(*[n for n in ('deepspeed', 'tutel') if u.find_spec(n)])"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.split()


class PeerFailed(Exception):
    """A peer's process ended or said something else than it should; the message ends with what it said last."""


class Members:
    """A peer's processes; `norm` is that of its first output (of the first process, where there are several)."""

    def __init__(self, name: str, folder: str, case: Path, world: int) -> None:
        self.name = name
        self._logs = [case.with_suffix(f".{name}.{rank}.log") for rank in range(world)]
        # -P: what lies beside the worker must not be taken for the standard library
        command = [str(_python(Path(folder).absolute())), "-P", str(WORKER), name, str(case)]
        self._processes = [self._start(command, rank, world) for rank in range(world)]
        norms = [self._answer(rank)["norm"] for rank in range(world)]
        self.norm = norms[0]

    def _start(self, command: list[str], rank: int, world: int) -> "subprocess.Popen[str]":
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self._logs[rank].open("w") as log:
            return subprocess.Popen(command, env=environment, stderr=log, text=True, **pipes)  # type: ignore[call-overload]

    def once(self) -> Taken:
        """A round: the longest any of them took, and the processors' time of all."""
        for process in self._processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [self._answer(rank) for rank in range(len(self._processes))]
        return Taken(max(a["wall"] for a in answers), sum(a["cpu"] for a in answers))

    def _answer(self, rank: int) -> dict[str, float]:
        for line in self._processes[rank].stdout:
            if line.startswith("{"):  # they print banners
                found: dict[str, float] = orjson.loads(line)
                return found
        last = self._logs[rank].read_text().strip().splitlines()[-1:]
        raise PeerFailed(f"{NAMES[self.name]}: {' '.join(last) or 'ended without a word'}")

    def end(self) -> None:
        """Let them go."""
        for process in self._processes:
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
            process.stdout.close()


@contextmanager
def started(folder: str, name: str, case: Path, world: int = 1) -> Iterator[Members]:
    """A peer at work on the inputs of `case`, on as many processes."""
    members = Members(name, folder, case, world)
    try:
        yield members
    finally:
        members.end()
