"""Every command that a page shows is run, as the page has it: taken from the page's own text.

Quick commands run as they stand. Long ones run to their first iterations, with settings appended that make
them short. Commands for a cluster, for LIBERO's or for 7B checkpoints are dry runs, or compose their settings
(``--cfg``). ``RULES`` says which command is run how; a command that no rule covers fails.

Commands run in a folder that looks like the repository's root, so that nothing is written to the repository:
all is linked there but docs/, which is a copy, and scripts/setup.sh, which does nothing (whoever runs the
tests has set up). What pages call runs/my-run and so on are small runs that pages' own commands have made.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import needs_libero, which
from tests.docs.interpreter import Interpreter
from tests.docs.pages import COMMAND, ROOT, Command, commands, lines, name, pages, same

TRAIN = "iterations=2 eval.episodes_per_task=2 eval.video=false telemetry.wandb=off telemetry.report=false"
SMALL = f"{TRAIN} rollout.workers=1 rollout.envs_per_worker=16 rollout.env_steps=1600 learner.updates=1"
TINY_VLA = f"{TRAIN} rollout.workers=1 rollout.envs_per_worker=4 rollout.env_steps=160 learner.updates=1"
CLONE = (
    "demonstrations.count=2 sft.steps=2 sft.steps_per_iteration=1 sft.batch_size=8 sft.micro_batch_size=8 "
    "rollout.workers=1 rollout.envs_per_worker=2 "
    "eval.episodes_per_task=2 eval.video=false telemetry.wandb=off"
)
PRACTICE = f"experiment=point_reach iterations=4 {TRAIN.removeprefix('iterations=2 ')}"
"""The settings of the runs that pages call runs/my-run and the like."""

MINIMAL = "import examples.minimal_gipo as example; example.ITERATIONS = 4; example.main()"
MADE = {
    "my-run": f"python -m gipo_vla.train run_dir=runs/my-run {PRACTICE} stop_after=1",
    "my-clone": f"python -m gipo_vla.sft run_dir=runs/my-clone {CLONE}",
    "own-objective": "python -m gipo_vla.train plugins=[examples.own_objective] objective=soft_truncation "
    f"run_dir=runs/own-objective {PRACTICE} stop_after=1",
    "puck": "python -m gipo_vla.train plugins=[examples.own_simulator] experiment=puck "
    f"run_dir=runs/puck {SMALL}",
    "points": f"python -m gipo_vla.train run_dir=runs/points {PRACTICE} stop_after=1",
    "soup": f"python -m gipo_vla.sft experiment=libero_object_mlp_sft run_dir=runs/soup {CLONE}",
    "sparse_start": "python -m gipo_vla.sft experiment=metaworld_sparse_sft "
    f"run_dir=runs/sparse_start {CLONE}",
    "part": f"python -m gipo_vla.sft experiment=metaworld_oft_tiny_part_sft run_dir=runs/part {CLONE}",
}
"""Runs that other commands of the pages read, and what makes them."""
MakeRun = Callable[[str], Path]
READS = re.compile(
    r"(?:resume|checkpoint|init_from)=(?:runs/)([\w-]+)|(?:gipo_vla\.report|use_a_policy\.py) runs/([\w-]+)"
)


@dataclass(frozen=True)
class Rule:
    """How a class of commands is run."""

    pattern: str
    """The first rule whose pattern is found in a command is taken."""
    extra: str = ""
    """What is appended to it."""
    replace: tuple[tuple[str, str], ...] = ()
    """Regular expressions and what stands in their place."""
    status: int = 0
    libero: bool = False
    """Needs LIBERO's assets."""

    def shortened(self, text: str) -> str:
        for pattern, replacement in self.replace:
            text = re.sub(pattern, replacement, text)
        # Before what the shell does next: a pipe, or the end of a loop.
        command, rest = re.fullmatch(r"(.*?)((?: 2>\S+)?(?: \|.*)?|; done)", text).groups()  # type: ignore[union-attr]
        extra = " ".join(one for one in self.extra.split(" ") if one not in command.split())
        return f"{command} {extra}".rstrip() + rest


COMPOSED = ((r"\S*torchrun( --\S+)* ", "python "), (r" \.\.\.", ""))
RULES = (
    # Help, and a mistake that is refused.
    Rule(r"--help|--cfg"),
    Rule(r"buton-press"),
    # The scripts of a cluster.
    Rule(
        r"launch_node\.sh --dry-run|launch_slurm\.sbatch --dry-run", replace=((r"=\.\.\.", "=point_reach"),)
    ),
    Rule(r"^sbatch", replace=((r"^sbatch .*?(scripts/\S+)", r"bash \1 --dry-run"),)),
    Rule(
        r"sweep_slurm\.sbatch.*oft7b",
        replace=((r"^(scripts/\S+)( --dry-run)?", r"bash \1 --dry-run"),),
        libero=True,
    ),
    Rule(r"sweep_slurm\.sbatch", "seed=0", replace=((r"^(scripts/\S+)( --dry-run)?", r"bash \1 --dry-run"),)),
    Rule(r"launch_node\.sh.*oft7b", replace=((r"launch_node\.sh", "launch_node.sh --dry-run"),)),
    # What Docker would run, run here; the image's file is checked by its linter.
    Rule(r"^docker run", TRAIN, replace=((r"^docker run .* gipo_vla ", "RANKS=1 "),)),
    Rule(r"^docker build", replace=((r".*-f (\S+) .*", r"hadolint \1"),)),
    Rule(r"launch_node\.sh", TRAIN),
    # Set-up has been done, and the test suite is what runs here: one small file of it.
    Rule(r"^\./scripts/setup\.sh|^export "),
    Rule(
        r"^\./scripts/test\.sh", "--collect-only -q tests/objectives/test_gipo.py", replace=((r" --\w+", ""),)
    ),
    Rule(
        r"pre-commit",
        replace=((r".*", "python -c 'import yaml; yaml.safe_load(open(\".pre-commit-config.yaml\"))'"),),
    ),
    # Policies and checkpoints that are not here: their settings are composed.
    Rule(r"oft_?7b", "--cfg", replace=COMPOSED),
    # Many runs: what they would be.
    Rule(r"gipo_vla\.sweep KEY=", "dry_run=true", replace=((r"KEY=VALUE,VALUE \.\.\.", "seed=0,1"),)),
    Rule(r"gipo_vla\.sweep experiment=point_reach", f"{TRAIN} jobs=2 part=1/6"),
    Rule(r"gipo_vla\.sweep sweep=libero", "dry_run=true", replace=((r" init_from=\S+", ""),), libero=True),
    Rule(r"gipo_vla\.sweep", "dry_run=true"),
    # Reading runs.
    Rule(r"gipo_vla\.report pack", replace=((r"DIR.*", "sweeps/again"),)),
    Rule(r"gipo_vla\.report DIR", replace=((r"DIR \.\.\.|DIR", "runs/my-run"),)),
    Rule(r"gipo_vla\.report"),
    Rule(r"gipo_vla\.evaluate", "eval.episodes_per_task=2", replace=((r"=RUN_DIR", "=runs/my-run"),)),
    Rule(r"gipo_vla\.export", replace=((r"runs/my-vla", "runs/part"),)),
    # Measurements.
    Rule(r"gipo_vla\.benchmark rollout env=libero", "repeats=1 seconds=0.2 env.task=[0]", libero=True),
    Rule(r"gipo_vla\.benchmark record", "frames=8 env.task=[0] rollout.workers=1", libero=True),
    Rule(r"gipo_vla\.benchmark (rollout|policy)", "repeats=1 seconds=0.1"),
    Rule(
        r"gipo_vla\.benchmark training policy|gipo_vla\.benchmark training env",
        "rounds=1 rollout.env_steps=640",
    ),
    Rule(r"gipo_vla\.benchmark training", "rounds=1"),
    Rule(r"gipo_vla\.benchmark credit", "repeats=1"),
    Rule(r"gipo_vla\.benchmark endurance", f"{TRAIN} iterations=30 seconds=0.01"),
    Rule(r"gipo_vla\.benchmark suite", "size=tiny parts=floor"),
    Rule(r"gipo_vla\.benchmark soak", "kinds=mlp jobs=1", replace=((r"minutes=\S+", "minutes=0.2"),)),
    Rule(r"gipo_vla\.settings\.descriptions"),
    Rule(r"gipo_vla\.doctor"),
    Rule(r"gipo_vla\.studies"),
    # Resuming, and starting from another run.
    Rule(r"sft resume=", "sft.steps=4", replace=((r"=RUN_DIR", "=runs/my-clone"),)),
    Rule(r"plugins=.* stop_after=", "iterations=4 " + TRAIN.removeprefix("iterations=2 ")),
    Rule(r"gipo_vla\.train .*resume=runs", "stop_after=2"),
    Rule(r"resume=auto", "stop_after=2", replace=((r"\.\.\.", PRACTICE),)),
    Rule(r"init_from=runs/part", TINY_VLA),
    Rule(r"libero_\w+_sft", CLONE, libero=True),
    Rule(r"init_from=runs/soup", TINY_VLA, libero=True),
    Rule(r"init_from=runs/sparse_start", SMALL),
    Rule(r"init_from=", SMALL, replace=((r"=RUN_DIR|=runs/\S+", "=runs/my-clone"), (r" \.\.\.", ""))),
    # Packages that are no requirement of this project: what they would be, and what the script takes.
    Rule(r"pip install --target", replace=((r".* -r (\S+)", r"test -s \1"),)),
    Rule(r"stable_baselines\.py", "--help"),
    # Examples, whose own tests train them to the end.
    Rule(r"examples/minimal_gipo\.py", replace=((r" examples/.*", f" -c '{MINIMAL}'"),)),
    Rule(r"examples/(own_trainer|use_a_policy)\.py"),
    # Learning.
    Rule(r"gipo_vla\.sft", CLONE, replace=((r" \.\.\.", ""), (r"nproc-per-node=8", "nproc-per-node=2"))),
    Rule(r"experiment=point_reach", TRAIN),
    Rule(r"env\.task=MT10", f"{SMALL} eval.episodes_per_task=1"),
    Rule(r"train\.sh|gipo_vla\.train|^torchrun", SMALL, replace=((r" \.\.\.", ""),)),
)
STAND_INS = (
    (r"runs/(my_sweep|after|before)\b|sweeps/point_reach-capacity-sigma-seed", "runs/my-run"),
    (r"(?<= )\[(?!\.)[^\]]*\]", ""),
    (r"=PATH\b", "=/nowhere"),
    (r"=FOLDER\b", "=a_folder"),
)
"""What any command may have: folders of sweeps, options in brackets (left out), placeholders."""


def rule(command: Command) -> Rule:
    found = next((rule for rule in RULES if re.search(rule.pattern, command.text)), None)
    assert found is not None, f"{command.page}: say in RULES how this command is run: {command.text}"
    return found


def shortened(command: Command) -> str:
    """The command as it is run."""
    text = command.text
    for pattern, replacement in STAND_INS:
        text = re.sub(pattern, replacement, text)
    return " ".join(rule(command).shortened(text).split())


def stand_in_root(folder: Path) -> Path:
    """A folder in which commands find what they find in the repository's root, and may write."""
    folder.mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.name not in ("docs", "scripts", "runs", "sweeps", ".git"):
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("*.png"))
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "scripts" / "setup.sh").write_text("#!/bin/sh\nexit 0\n")
    return folder


PLAIN = re.compile(r"(\.venv/bin/)?python -m (?P<module>gipo_vla\.[\w.]+)(?P<arguments>[^|;<>$]*)")
"""A command that needs no shell."""


def run(text: str, root: Path, interpreter: Interpreter) -> subprocess.CompletedProcess[str]:
    """Run a command in the stand-in root; ``python`` and ``torchrun`` are those that run the tests."""
    if found := PLAIN.fullmatch(text):
        return interpreter.run(found["module"], shlex.split(found["arguments"]), root)
    own = str(Path(which("python") or "").parent)
    environment = {**os.environ, "PATH": f"{own}{os.pathsep}{os.environ['PATH']}", "PYTHON": "python"}
    text = text.replace(".venv/bin/", "")
    if not shutil.which("jq"):
        text = re.sub(r" \| jq .*", "", text)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", text],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    opened = Interpreter()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def runs_to_read(tmp_path_factory: pytest.TempPathFactory, interpreter: Interpreter) -> MakeRun:
    """Returns a function that makes one of ``MADE`` when it is first asked for, and returns its folder."""

    @cache
    def make(one: str) -> Path:
        root = stand_in_root(tmp_path_factory.mktemp("made") / "root")
        done = run(MADE[one], root, interpreter)
        assert done.returncode == 0, done.stderr
        return root / "runs" / one

    return make


def described(command: Command) -> str:
    return f"{command.page}: {command.text}"


SLOW = r"report docs/results/data/paper_metaworld_small docs|^for part|sweep=paper_metaworld |sweep_slurm"
"""Reports and sweeps of many runs, of which a smaller one runs by default."""
DEFAULT = re.compile(r"^\./scripts/(train|test)\.sh$|torchrun|gipo_vla\.sft|resume=|benchmark rollout")
"""Commands of the README that run by default: the others differ from these in a setting."""
QUICK = re.compile(r"--help|--cfg|dry_run=true|--dry-run|^export|scripts/setup|hadolint|import yaml")


def parameters() -> list[object]:
    """A parameter for each command. Those that import torch or simulate are slow tests, but for some of the
    README's: there are a hundred of them."""
    found, seen = [], set()
    for command in commands():
        covered = any(re.search(rule.pattern, command.text) for rule in RULES)
        # Commands that are the same once they are short run once.
        short = same(shortened(command)) if covered else command.text
        if short in seen:
            continue
        seen.add(short)
        default = command.page == "README.md" and DEFAULT.search(command.text)
        long = pytest.mark.medium if default else pytest.mark.slow
        marks = [] if not covered or QUICK.search(shortened(command)) else [long]
        if re.search(SLOW, command.text):
            marks = [pytest.mark.slow]
        if covered and rule(command).libero:
            marks.append(needs_libero)
        found.append(pytest.param(command, id=described(command), marks=marks))
    return found


@pytest.mark.parametrize("command", parameters())
def test_command_runs(
    command: Command, tmp_path: Path, interpreter: Interpreter, runs_to_read: MakeRun
) -> None:
    text = shortened(command)
    assert not re.search(r"\.\.\.|\b(RUN_DIR|DIR|PATH|FOLDER)\b", text), text
    root = stand_in_root(tmp_path / "root")
    for pair in READS.findall(text):
        one = next(filter(None, pair))
        shutil.copytree(runs_to_read(one), root / "runs" / one, dirs_exist_ok=True)
    if re.search(r"gipo_vla\.report runs$", text):
        shutil.copytree(runs_to_read("my-run"), root / "runs" / "my-run")
    if "sweeps/again" in text:
        shutil.copytree(runs_to_read("my-run"), root / "sweeps" / "again" / "my-run")
    done = run(text, root, interpreter)
    expected = 2 if "buton-press" in text else 0
    assert done.returncode == expected, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", pages(), ids=name)
def test_blocks_without_a_language_hold_commands_only(page: Path) -> None:
    """Else a command could go untested because it is taken for something that a command prints."""
    assert [line for line in lines(page) if not COMMAND.match(line)] == []
