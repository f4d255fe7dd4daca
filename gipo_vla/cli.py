"""The small command-line function that all entry points share.

``command`` gives every command the same manners: Hydra overrides as arguments, ``--help`` that shows the
config groups, ``--cfg`` that prints the composed settings, and a mistake of the user's as one line on
stderr with exit status 2 instead of a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from gipo_envs.errors import UserError


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a command on ``sys.argv`` and exit with its status."""
    try:
        status = main(sys.argv[1:]) or 0
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BaseException as error:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1 or isinstance(error, SystemExit):
            raise
        # A rank that dies slowly leaves the others hanging in a collective call.
        sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)


def handle_common_flags(arguments: Sequence[str], config_name: str, usage: str) -> list[str] | None:
    """Answer --help and --cfg; returns the overrides, or None when the command is done."""
    overrides = [argument for argument in arguments if not argument.startswith("--")]
    for flag in (argument for argument in arguments if argument.startswith("--")):
        if flag == "--help":
            print(_help(usage))
            return None
        if flag == "--cfg":
            from omegaconf import OmegaConf

            from gipo_vla.config import compose_yaml

            print(OmegaConf.to_yaml(compose_yaml(config_name, overrides)))
            return None
        raise UserError(f"unknown option {flag}: options are --help and --cfg, settings are key=value")
    return overrides


def _help(usage: str) -> str:
    from gipo_vla.config import groups

    lines = [usage.strip(), "", "Config groups (group=option):"]
    lines += [f"  {name}: {', '.join(options)}" for name, options in groups().items()]
    lines += [
        "",
        "Any single setting: key=value, for instance objective.sigma=0.5 replay.capacity=20000 seed=1.",
        "--cfg prints every setting with its value.",
    ]
    return "\n".join(lines)
