"""design.md's rooms: who may import whom, read from the import statements."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gipo_envs
import gipo_vla

PACKAGE = Path(gipo_vla.__file__).parent
ENVIRONMENTS = Path(gipo_envs.__file__).parent

# From top to bottom; imports go down only. What stands in one line may import each other.
ROOMS = (
    ("train", "sft", "evaluate", "sweep", "report", "export", "doctor", "benchmark", "demo", "__main__"),
    ("benchmarks", "studies"),
    ("reporting", "sweeping"),
    ("run",),
    ("pipeline", "assembly"),
    ("imitation",),
    ("evaluation",),
    ("checkpoint",),
    ("rollout",),
    ("learner",),
    ("replay",),
    ("credit",),
    ("objectives",),
    ("policies",),
    # Settings classes of the rooms above register by themselves; everybody may read the settings.
    ("settings", "cli", "options", "telemetry", "distributed", "configs", "foreign"),
)
LEVEL = {room: level for level, line in enumerate(ROOMS) for room in line}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, and whether only for type checking."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module, id(node) in typing_only
            for alias in node.names:  # "from gipo_vla.checkpoint import run_state" imports that module too
                yield f"{node.module}.{alias.name}", id(node) in typing_only


def files(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found
    return found


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


SOURCES = [path for path in files(PACKAGE) if room_of(path) != "__init__"]


def name(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


def test_every_room_has_its_place() -> None:
    unknown = {room_of(path) for path in SOURCES} - set(LEVEL)
    assert not unknown, f"give {sorted(unknown)} a line in ROOMS, where design.md has them"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_go_down(path: Path) -> None:
    own = room_of(path)
    for imported, typing_only in imports(path):
        package, _, rest = imported.partition(".")
        if package != "gipo_vla" or not rest or typing_only:
            continue
        other = rest.partition(".")[0]
        if other == own or other not in LEVEL:
            continue
        assert LEVEL[own] <= LEVEL[other], f"{name(path)} imports {imported}, which stands above it"


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if room_of(path) in {"policies", "credit", "objectives"}], ids=name
)
def test_policies_credit_and_objectives_know_no_machinery(path: Path) -> None:
    """Nothing of simulators (but the data types of gipo_envs), processes or DeepSpeed."""
    for imported, _ in imports(path):
        first = imported.partition(".")[0]
        assert first not in {"deepspeed", "multiprocessing", "subprocess", "mujoco", "metaworld", "ray"}
        assert not imported.startswith("torch.distributed")
        if first == "gipo_envs":
            allowed = ("gipo_envs.errors", "gipo_envs.protocol", "gipo_envs.image_formats")
            inner = imported.startswith(allowed) or imported.count(".") <= 1
            assert inner, f"{name(path)} imports {imported}"


def test_environments_import_neither_gipo_vla_nor_torch() -> None:
    for path in files(ENVIRONMENTS):
        for imported, _ in imports(path):
            assert imported.partition(".")[0] not in {"gipo_vla", "torch", "transformers", "deepspeed"}, path


def test_workers_import_nothing_that_imports_torch() -> None:
    """Followed through gipo_vla from the worker on, function bodies included."""
    seen: set[Path] = set()
    queue = [PACKAGE / "rollout" / "worker.py"]
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        for imported, typing_only in imports(path):
            if typing_only:
                continue
            first = imported.partition(".")[0]
            assert first not in {"torch", "transformers", "deepspeed", "wandb"}, f"{path} imports {imported}"
            if first == "gipo_vla":
                inner = PACKAGE.joinpath(*imported.split(".")[1:])
                candidates = (inner.with_suffix(".py"), inner / "__init__.py")
                queue += [candidate for candidate in candidates if candidate.is_file()]
    assert len(seen) > 1


def test_files_stay_readable() -> None:
    """A file above 400 lines is a question to ask (style.md); this one asks it."""
    long = {name(p): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 450}
    assert not long, f"split these, or say why not: {long}"
