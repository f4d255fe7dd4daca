"""A training run that is killed (SIGKILL) when it is about to empty a folder: ``dies_removing.py NAME
overrides``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from gipo_vla import cli, train


def main() -> None:
    name = sys.argv.pop(1)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "shutil.rmtree" and Path(str(arguments[0])).name == name:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    cli.run(train.main)


if __name__ == "__main__":
    main()
