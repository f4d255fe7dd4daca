"""The small command-line function that all entry points share.

Every command takes Hydra overrides as arguments, shows the config groups with ``--help``, explains a setting
with ``--help KEY`` and prints the composed settings with ``--cfg``. A mistake of the user's is one line on
stderr with exit status 2 instead of a traceback.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from gipo_envs.errors import LostRankError, RunStoppedError, UserError
from gipo_vla.distributed.signals import interrupts_raise

LONGEST_LINE = 2000
"""Characters of a message."""
ONE_COMMAND_GROUPS = {"demonstrations": "sft", "sweep": "sweep"}
"""Config groups that mean something to one command only, and which."""


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a command on ``sys.argv`` and exit with its status."""
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    speaks = int(os.environ.get("LOCAL_RANK", 0)) == 0  # the ranks of a machine see the same
    interrupts_raise()
    try:
        status = main(sys.argv[1:]) or 0
    except (UserError, RunStoppedError) as error:
        if speaks or isinstance(error, LostRankError):
            print(f"error: {_one_line(str(error))}", file=sys.stderr)
        status = 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        if speaks:
            print("interrupted", file=sys.stderr)
        status = 130
    except BaseException as error:
        if alone or isinstance(error, SystemExit):
            raise
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    if status and not alone:
        # A rank that takes its time to leave keeps the others waiting in a collective call.
        os._exit(status)
    if status == 0:
        _leave_at_once()
    sys.exit(status)


def _one_line(text: str) -> str:
    """A message without line breaks, and without codes that a terminal would obey: it may quote a file."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def deny_writing_to_others() -> None:
    """Let no file or folder that this process makes be for everybody to write, whatever mask it was started
    with."""
    os.umask(os.umask(0o022) | 0o002)


def _leave_at_once() -> None:
    """Exit with status 0; Python would take torch apart module by module, seconds on a busy machine."""
    atexit._run_exitfuncs()
    os._exit(0)


def handle_common_flags(arguments: Sequence[str], config_name: str, usage: str) -> list[str] | None:
    """Answer --help [KEY ...] and --cfg; returns the overrides, or None when the command is done."""
    overrides = [argument for argument in arguments if not argument.startswith("--")]
    flags = [argument for argument in arguments if argument.startswith("--")]
    for flag in flags:
        if flag not in ("--help", "--cfg"):
            raise UserError(f"unknown option {flag}: options are --help and --cfg, settings are key=value")
    if not flags:
        return overrides
    from omegaconf import OmegaConf

    from gipo_vla.settings import composition, descriptions, plugins

    if "--help" not in flags:
        print(OmegaConf.to_yaml(composition.compose_yaml(config_name, overrides)))
        return None
    plugins.load(plugins.named_in(overrides))
    if keys := [text for text in overrides if "=" not in text]:
        root = config_name if config_name in composition.ROOTS else "train"
        print("\n".join(descriptions.help_on(key, root) for key in keys))
        return None
    groups = "\n".join(
        f"  {name}: {', '.join(options)}"
        for name, options in composition.groups().items()
        if ONE_COMMAND_GROUPS.get(name, config_name) == config_name
    )
    print(f"{usage.strip()}\n\nConfig groups (group=option):\n{groups}\n{ABOUT_SETTINGS}")
    return None


ABOUT_SETTINGS = """
Any single setting: key=value, for instance objective.sigma=0.5 replay.capacity=20000 seed=1.
--cfg prints every setting with its value, --help KEY what one means (docs/settings.md has all)."""
