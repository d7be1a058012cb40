"""Commands that are killed, signalled and starved, and what must be left of them."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 120.0  # seconds that any command may take
PATIENCE = 5.0  # seconds that a process has after the other failed; launchers end it then
SERVER = Path(__file__).with_name("server.py")
_TIMES = ("seconds", "images_per_second")


class Server:
    """Starts commands; see `server.py`."""

    def __init__(self, cache: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "VISIONATTN_CACHE": str(cache), "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen([sys.executable, str(SERVER)], stdin=-1, stdout=-1, text=True, env=environment)
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self._read())

    def start(self, arguments: list[str], output: Path, environment: dict[str, str] | None = None, **limits: int) -> Command:
        """Start a command in the folder of its output; `limits` are those of the module `resource`, for example RLIMIT_FSIZE."""
        request = {"start": arguments, "output": str(output), "limits": limits}
        return Command(self, self.ask(**request, environment=environment or {}, folder=str(output.parent)), output)

    def run(self, arguments: list[str], output: Path, **limits: int) -> Command:
        """Start a command and wait for it."""
        command = self.start(arguments, output, **limits)
        command.wait()
        return command

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Command:
    """A command that was started; it leads a process group of its own."""

    server: Server
    pid: int
    output: Path
    code: int | None = None

    @property
    def ended(self) -> bool:
        if self.code is None:
            self.code = self.server.ask(poll=self.pid)
        return self.code is not None

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self) -> int:
        """The exit code; a command that does not end is killed and fails the test."""
        self.until(lambda: False)
        assert self.code is not None
        return self.code

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait until something is the case; returns whether it was before the command ended."""
        deadline = time.monotonic() + LIMIT
        while not self.ended:
            if reached():
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"no end after {LIMIT:.0f} s:\n{self.text}")
            time.sleep(0.005)
        return False

    def kill_after(self, seconds: float) -> bool:
        """Kill the command if it does not end before; returns whether it was killed."""
        moment = time.monotonic() + seconds
        if not self.until(lambda: time.monotonic() > moment):
            return False
        self.kill()
        return True

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.pid, number)

    def kill(self) -> None:
        """End the whole group at once."""
        self.signal(signal.SIGKILL, group=True)
        while not self.ended:
            time.sleep(0.005)


def start_pair(server: Server, arguments: list[str], folder: Path) -> list[Command]:
    """Run a command as two processes, started and ended as launchers do."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    commands = [
        server.start(arguments, folder / f"rank{rank}.txt", {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)
    ]
    commands[0].until(lambda: bool(commands[1].ended and commands[1].code))
    for command in commands:
        command.kill_after(PATIENCE)
    return commands


def free_port() -> int:
    """A port that no process listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def steps(run: Path) -> int:
    """Steps that a run has logged."""
    path = run / "metrics.jsonl"
    return path.read_text().count('"kind": "step"') if path.exists() else 0


def left(run: Path) -> dict[str, Any]:
    """Weights by checkpoint and the log without times: equal for runs that computed the same."""
    weights = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.glob("checkpoints/[bl]*/*.safetensors")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key not in _TIMES} for line in lines]
    return {"log": log, **weights}


def killed_until_done(server: Server, settings: list[str], folder: Path, name: str, chance: random.Random, most: int) -> tuple[Path, int]:
    """Train, killed at random moments and resumed, to the end; returns the run and the number of kills."""
    output, kills = folder / f"{name}.txt", 0
    while True:
        started = sorted((folder / "runs" / name).glob("*/config.yaml"))  # none, if the kill came before it was written
        arguments = ["--resume", str(started[0].parent)] if started else [*settings, f"output.name={name}"]
        command = server.start(["train", *arguments], output)
        if kills == most:
            assert command.wait() == 0, command.text
            return next((folder / "runs" / name).glob("*/config.yaml")).parent, kills
        if started and chance.random() < 0.6:  # in the loop, a save or an evaluation; the others anywhere, mostly in the preparation
            _at_the_next_step(command, started[0].parent)
            delay = chance.uniform(0, 0.3)
        else:
            delay = chance.uniform(0, 3)
        if command.kill_after(delay):
            kills += 1
        elif command.code == 0:
            return next((folder / "runs" / name).glob("*/config.yaml")).parent, kills
        else:
            raise AssertionError(command.text)


def _at_the_next_step(command: Command, run: Path) -> None:
    before = steps(run)
    command.until(lambda: steps(run) != before)
