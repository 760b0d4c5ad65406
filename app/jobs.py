"""Long commands as processes of their own: they outlive the browser tab and the app, and are found again after a restart.

Does: start a command in a directory of its own, tell whether it still runs (process id and start time), stop it, start it again,
say in one sentence how it ended.
Does not: know what the commands do, block, or show anything.

    jobs = Jobs(Path("runs/app/jobs"))
    job = jobs.start("distill", [sys.executable, "-m", "factory.distill", "--config", "{job}/settings.toml"], files={…})
    jobs.state(job)         # "running"
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

State = Literal["starting", "running", "stopping", "done", "refused", "stopped", "failed", "killed"]
"""refused: the command said what is wrong with its input; stopped: on request, or cleanly by itself (a spent budget);
killed: gone without a word."""

ROOT = Path(__file__).resolve().parents[1]
RUNNING: frozenset[State] = frozenset({"starting", "running", "stopping"})
RESUMABLE: frozenset[State] = frozenset({"stopped", "failed", "killed", "refused"})
SAME_START_S = 2.0
"""Most by which two readings of one process's start time differ."""
STARTING_S = 30.0
"""A process that has not written its number after this long never began."""
TOGETHER = 4
"""Most commands at once: each takes memory and processors of the same machine."""
LOG_BYTES = 64_000
"""How much of the end of a command's output is read."""
KEPT = 200
"""Jobs kept; the oldest that ended go first."""
JOB = "{job}"
"""Stands for the job's own directory in a command."""

_ID = re.compile(r"[a-z]+-\d{8}-\d{6}-[0-9a-f]{6}")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_PROGRAM = re.compile(r"^[\w.-]+: (?:error|stopped): ")


class JobError(Exception):
    """A command that cannot be started or found: one sentence with the way on."""


@dataclass(frozen=True)
class Job:
    """One start of one command. Everything about it lies in `directory`."""

    id: str
    kind: str
    argv: tuple[str, ...]
    about: str
    """what the command works on: a run directory, or a name"""
    created: float
    directory: Path

    @property
    def output(self) -> Path:
        return self.directory / "output.log"


class Jobs:
    """The jobs below one directory. Cheap to make; safe in several threads and several apps at once."""

    def __init__(self, root: Path, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is what the commands see beside what they need; default: this process's."""
        self.root = root.resolve()
        self.environment = dict(os.environ if environment is None else environment)
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, kind: str, argv: Sequence[str], about: str = "", files: Mapping[str, str] | None = None) -> Job:
        """Start `argv` in a session of its own. `files` (name -> text) are written into its directory first, where "{job}" in an
        argument leads. Raises JobError when too many run already or the directory cannot be written."""
        earlier = self.recent()
        if sum(self.state(job) in RUNNING for job in earlier) >= TOGETHER:
            raise JobError(f"{TOGETHER} commands run already; wait for one to end, or stop one")
        created = time.time()
        id = f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(created))}-{secrets.token_hex(3)}"
        directory = self.root / id
        try:
            directory.mkdir(parents=True)
            for name, text in (files or {}).items():
                (directory / name).write_text(text, encoding="utf-8")
            words = tuple(word.replace(JOB, str(directory)) for word in argv)
            job = Job(id, kind, words, about, created, directory)
            _write(directory / "job.json", {**asdict(job), "directory": str(directory), "cwd": str(Path.cwd())})
            self._launch(job)
            for old in earlier[KEPT - 1 :]:
                if self.state(old) not in RUNNING:
                    shutil.rmtree(old.directory, ignore_errors=True)
        except OSError as error:
            raise JobError(
                f"{directory}: cannot be written ({error.strerror}); free some space or choose another place"
            ) from None
        return job

    def _launch(self, job: Job) -> None:
        path = os.pathsep.join(part for part in (str(ROOT), self.environment.get("PYTHONPATH", "")) if part)
        # Isolated (-I): the directory of the script, full of names like "jobs", stays off its path.
        self._started.append(
            subprocess.Popen(
                [sys.executable, "-I", str(ROOT / "app" / "job_child.py"), str(job.directory)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**self.environment, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "118"},
            )
        )

    def recent(self, kind: str | None = None) -> list[Job]:
        """Every job (of one kind), newest first; directories that hold no job are passed over."""
        if not self.root.is_dir():
            return []
        found = [job for path in self.root.iterdir() if (job := _read(path)) is not None and kind in (None, job.kind)]
        return sorted(found, key=lambda job: job.created, reverse=True)

    def get(self, id: str) -> Job:
        """The job with this id. Raises JobError; an id that is no plain name is never looked up."""
        job = _read(self.root / id) if _ID.fullmatch(id) else None
        if job is None:
            raise JobError(f"there is no job {id[:60]!r}; choose one from the list")
        return job

    def last_about(self, about: str, kind: str) -> Job | None:
        """The newest job of a kind that works on `about`."""
        return next((job for job in self.recent(kind) if job.about == about), None)

    def state(self, job: Job) -> State:
        """How it stands, from its files and the list of processes."""
        self._reap()
        ended = _json(job.directory / "exit.json")
        asked = (job.directory / "stop.json").exists()
        if ended is None:
            if self._process(job) is not None:
                return "stopping" if asked else "running"
            # It may have ended between the two looks.
            ended = _json(job.directory / "exit.json")
        if ended is not None:
            return _meaning(int(ended["code"]), asked)
        if _json(job.directory / "process.json") is None and time.time() - job.created < STARTING_S:
            return "starting"
        return "stopped" if asked else "killed"

    def ended(self, job: Job) -> float | None:
        """When it ended, in epoch seconds; None while it runs or where nobody saw it end."""
        found = _json(job.directory / "exit.json")
        return float(found["ended"]) if found is not None else None

    def stop(self, job: Job, now: bool = False) -> None:
        """Ask it to stop as Ctrl-C does, so that it keeps what it has; `now` ends it at once. Never waits."""
        if self.state(job) not in RUNNING:
            return
        # Before the look at the process: one that is just starting looks for this file.
        _write(job.directory / "stop.json", {"asked": time.time(), "now": now})
        process = self._process(job)
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL if now else signal.SIGINT)

    def stop_asked(self, job: Job) -> float | None:
        """When it was asked to stop, in epoch seconds."""
        found = _json(job.directory / "stop.json")
        return float(found["asked"]) if found is not None else None

    def again(self, job: Job) -> Job:
        """The same command once more, with copies of the same files: commands of this project then continue. Raises JobError."""
        if self.state(job) in RUNNING:
            raise JobError(f"{job.about or job.kind}: still runs; stop it before it is started again")
        own = {"job.json", "process.json", "exit.json", "stop.json", "output.log"}
        files = {path.name: path.read_text(encoding="utf-8") for path in job.directory.iterdir() if path.name not in own}
        return self.start(job.kind, [word.replace(str(job.directory), JOB) for word in job.argv], job.about, files)

    def lines(self, job: Job, most: int = 200) -> list[str]:
        """The last lines the command printed, without control characters."""
        try:
            with job.output.open("rb") as file:
                file.seek(max(0, job.output.stat().st_size - LOG_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return [_CONTROL.sub("", line) for line in text.splitlines()[-most:]]

    def sentence(self, job: Job) -> str:
        """How a job that ended badly ended, in its own words where it had some."""
        said = [line.strip() for line in self.lines(job) if line.strip()]
        named = [line for line in said if _PROGRAM.match(line)]
        match self.state(job):
            case "refused":
                return _PROGRAM.sub("", (named or said or ["the command was refused"])[-1])
            case "stopped":
                return _PROGRAM.sub("", named[-1]) if named else "Stopped; everything finished so far is kept."
            case "killed":
                return "The process ended without a word, most likely killed for memory; start it again to go on."
            case "failed":
                return f"The command broke off: {said[-1] if said else 'it said nothing'}. The log below says more."
        return ""

    def _process(self, job: Job) -> psutil.Process | None:
        """The process of a job, if it still is the one that was started."""
        noted = _json(job.directory / "process.json")
        if noted is None:
            return None
        try:
            process = psutil.Process(int(noted["pid"]))
            same = abs(process.create_time() - float(noted["started"])) < SAME_START_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def _reap(self) -> None:
        self._started = [process for process in self._started if process.poll() is None]


def _meaning(code: int, asked: bool) -> State:
    if code == 0:
        return "done"
    if asked or code in (3, 130):
        return "stopped"
    return "refused" if code == 2 else "killed" if code == -signal.SIGKILL else "failed"


def _read(directory: Path) -> Job | None:
    found = _json(directory / "job.json")
    if found is None or not _ID.fullmatch(directory.name):
        return None
    try:
        argv = tuple(map(str, found["argv"]))
        return Job(directory.name, str(found["kind"]), argv, str(found["about"]), float(found["created"]), directory)
    except (KeyError, TypeError, ValueError):
        return None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, value: object) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)
