"""An interpreter that has imported the libraries once and forks itself for every command.

Most of a short command's time is the import of torch, DeepSpeed and the like. ``Interpreter.run`` runs
``python -m MODULE ARGUMENTS`` as a process of its own all the same, with its own folder and output.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

LIBRARIES = (
    "deepspeed",
    "gipo_envs",
    "hydra",
    "matplotlib.pyplot",
    "pandas",
    "pydantic",
    "scipy.stats",
    "torch.distributed",
    "transformers",
)


class Interpreter:
    """A process that waits for commands."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def run(self, module: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a module as ``python -m`` does, in a folder, and return its status and output."""
        files = {name: folder.with_name(f"{name}.log") for name in ("stdout", "stderr")}
        task = {"module": module, "arguments": arguments, "folder": str(folder)}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(task | {name: str(path) for name, path in files.items()}), file=self.process.stdin)
        status = int(self.process.stdout.readline())
        texts = {name: path.read_text() for name, path in files.items()}
        return subprocess.CompletedProcess([module, *arguments], status, texts["stdout"], texts["stderr"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    """Fork for every line of stdin; write the exit status of each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print when they are imported is no answer
    for name in LIBRARIES:
        __import__(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            command(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers)


def command(task: dict[str, Any]) -> None:
    """Become the command, and end with it."""
    for number, name in enumerate(("stdout", "stderr"), 1):
        opened = os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(task["folder"])
    sys.path[0] = task["folder"]
    sys.argv = [task["module"], *task["arguments"]]
    status: object = 1
    try:
        runpy.run_module(task["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    serve()
