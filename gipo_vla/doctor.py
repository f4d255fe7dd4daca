"""Check this machine and this installation: ``python -m gipo_vla.doctor [env.assets=FOLDER]``.

Tries and times what training is made of: OpenGL, simulators, torch, DeepSpeed, GPUs, disk, shared memory,
wandb, versions. Prints a table for people, with what to install for each failure, and one line of JSON on
stdout. Exit status 0 if training on state observations would work, else 1. Takes some ten seconds and
downloads nothing.

What could crash or hang (drivers, simulators, DeepSpeed) is tried in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import timeit
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat

import gipo_envs
from gipo_envs.errors import UserError, nearest
from gipo_vla import cli, options
from gipo_vla.telemetry.console import console, table

GIB = 2**30
ROOT = Path(__file__).parents[1]
"""Of a source tree."""


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    state: Literal["ok", "note", "failed"]
    """note: training on state observations works without it."""
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    run: Callable[..., Finding]
    needed: bool
    """Training on state observations does not work without it."""
    apart: bool = False
    """Tried in a process of its own, which is given ``timeout`` seconds."""


@dataclass(frozen=True)
class Options:
    """What to look at."""

    assets: Annotated[str | None, Field(alias="env.assets")] = None
    """Folder of LIBERO's assets. Default: the variable LIBERO_ASSETS."""
    probe: str | None = None
    """Try only this, in this process: deepspeed, opengl, or a simulator."""
    timeout: PositiveFloat = 120.0
    """Seconds after which something that is tried in a process of its own counts as hung."""


def main(arguments: Sequence[str]) -> int:
    parsed = options.parse(arguments, Options, __doc__ or "")
    if parsed is None:
        return 0
    own, rest = parsed
    if rest:
        raise UserError(f"{rest[0]!r}: doctor takes env.assets=FOLDER and timeout=SECONDS only")
    if own.assets:
        os.environ["LIBERO_ASSETS"] = own.assets
    if own.probe is None:
        return examine(own.timeout)
    probes = PROBES | {name: probe.run for name, probe in SIMULATORS.items()}
    if own.probe not in probes:
        raise UserError(f"probe={own.probe}: there is no such probe; {nearest(own.probe, probes)}")
    print(probes[own.probe]())
    return 0


def examine(timeout: float = Options.timeout) -> int:
    """Run every check, print what they found, and return the exit status; for ``timeout`` see ``Options``."""
    colours = {"ok": "green", "note": "yellow", "failed": "red"}
    found: dict[str, Any] = {}
    rows = []
    for check in CHECKS:
        began = time.perf_counter()
        try:
            finding = check.run(timeout=timeout) if check.apart else check.run()
        except Exception as error:  # a broken installation may fail in any way
            finding = Finding("failed", f"{type(error).__name__}: {error}")
        seconds = time.perf_counter() - began
        if finding.state == "failed" and not check.needed:
            finding = replace(finding, state="note")
        found[check.name] = {**asdict(finding), "seconds": round(seconds, 2)}
        state = f"[{colours[finding.state]}]{finding.state}"
        rows.append((check.name, state, f"{seconds:.1f}", finding.detail, finding.remedy))
    title = f"gipo_vla doctor: {platform.platform()}, Python {platform.python_version()}"
    view = table(title, ("", "", "seconds", "", "what to do"), rows, left=("", "what to do"))
    console.print(view, width=max(console.width, 120))
    ready = all(one["state"] != "failed" for one in found.values())
    print(json.dumps({"doctor": "ready" if ready else "not ready", "ready": ready, "checks": found}))
    return 0 if ready else 1


# ------------------------------------------------------------------------------------- looked at right here


def check_python() -> Finding:
    detail = f"{platform.python_version()} in {sys.prefix}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("ok", detail)
    return Finding("failed", detail, "use Python 3.11 to 3.13")


def check_versions() -> Finding:
    """What pyproject.toml requires is there, and what is there has the version that the tests run with."""
    if missing := [name for name in _required() if _installed(name) is None]:
        return Finding("failed", f"missing: {', '.join(missing)}", "./scripts/setup.sh")
    compared = [(name, found, pin) for name, pin in _pins() if (found := _installed(name))]
    differing = [f"{name} {found} (tested: {pin})" for name, found, pin in compared if found != pin]
    if differing:
        return Finding("note", "; ".join(differing), "./scripts/setup.sh installs the tested versions")
    return Finding("ok", f"{len(compared)} packages in the tested versions")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _required() -> list[str]:
    """Return the distributions that this one requires, without extras."""
    try:
        lines = importlib.metadata.requires("gipo-vla") or []
    except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
        lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in lines if "extra ==" not in line]


def _pins() -> Iterator[tuple[str, str]]:
    """Yield tested versions; an installed wheel has no constraints.txt, and nothing is compared."""
    path = ROOT / "constraints.txt"
    text = path.read_text() if path.is_file() else ""
    yield from re.findall(r"^([\w.-]+)\s*==\s*([^\s;]+)", text, re.MULTILINE)


def check_torch() -> Finding:
    began = time.perf_counter()
    import torch

    seconds = time.perf_counter() - began
    if (total := float((torch.ones(64, 64) @ torch.ones(64, 64)).sum())) != 64.0**3:
        return Finding("failed", f"torch {torch.__version__} computes 64^3 = {total}", "reinstall torch")
    return Finding("ok", f"torch {torch.__version__}, imported in {seconds:.1f} s")


def check_gpus() -> Finding:
    import torch

    from gipo_vla.distributed import group

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = sorted({f"{one.name} {one.total_memory / GIB:.0f} GiB" for one in found})
        return Finding("ok", f"{len(found)}: {', '.join(names)}")
    if group.machine_shows_gpu():
        remedy = f"GIPO_TORCH=cuda ./scripts/setup.sh (this is torch {torch.__version__})"
        return Finding("note", "there are NVIDIA GPUs, but torch cannot use them", remedy)
    remedy = "OpenVLA-OFT 7B needs GPUs, small policies do not"
    return Finding("note", "none: training runs on the CPU", remedy)


def check_processor() -> Finding:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    detail = f"{cores} cores, {memory.available / GIB:.0f} of {memory.total / GIB:.0f} GiB memory free"
    little = Finding("note", detail, "a run takes 2 GiB and more: lower rollout.workers")
    return little if memory.available < 3 * GIB else Finding("ok", detail)


def check_disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    with tempfile.TemporaryFile(dir=Path.cwd()) as file:
        file.write(bytes(2**20))
    detail = f"{free / GIB:.0f} GiB free in {Path.cwd()}"
    if free < GIB:
        return Finding("failed", detail, "make room, or put run_dir elsewhere: a small run takes 0.1 GiB")
    little = Finding("note", detail, "checkpoints of OpenVLA-OFT 7B with their replay take tens of GiB")
    return little if free < 20 * GIB else Finding("ok", detail)


def check_shared_memory() -> Finding:
    """What the worker pool needs, and the folder that NCCL and torch use."""
    from gipo_vla.rollout.shared_arrays import SharedArrays

    arrays = SharedArrays({"trial": ((2**24,), "uint8")})
    arrays["trial"][:] = 1
    arrays.close()
    if not Path("/dev/shm").is_dir():
        return Finding("note", "16 MiB shared; no /dev/shm", "several GPUs: NCCL wants /dev/shm")
    free = shutil.disk_usage("/dev/shm").free
    detail = f"16 MiB shared; {free / GIB:.1f} GiB free in /dev/shm"
    little = Finding("note", detail, "several GPUs: start the container with --shm-size=16g or --ipc=host")
    return little if free < GIB else Finding("ok", detail)


def check_wandb() -> Finding:
    if importlib.util.find_spec("wandb") is None:
        return Finding("note", "not installed", "./scripts/setup.sh")
    from gipo_vla.telemetry.tracker import _has_key

    if _has_key():
        return Finding("ok", "an API key is there: runs are logged online")
    return Finding("note", "no API key: runs are kept offline", "wandb login, or telemetry.wandb=off")


# ------------------------------------------------------------------------------ tried in a process of its own


def _probe(name: str, remedy: str, timeout: float) -> Finding:
    """Run a probe apart; the last line that it prints is what it found."""
    program = [sys.executable, "-m", "gipo_vla.doctor", f"probe={name}"]
    try:
        result = subprocess.run(
            program, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Finding("failed", f"did not end within {timeout:.0f} s", remedy)
    said = result.stderr if result.returncode else result.stdout
    last = (said.strip().splitlines() or [f"ended with status {result.returncode}"])[-1]
    if result.returncode or not result.stdout.strip():
        # A UserError's line says itself what to do.
        return Finding("failed", last.removeprefix("error: "), "" if result.returncode == 2 else remedy)
    return Finding("ok", last)


def probe_deepspeed() -> str:
    """Make one update of the small policy through the engine that every run trains with."""
    began = time.perf_counter()
    import torch

    from gipo_vla.assembly import build_policy, environment_spec
    from gipo_vla.distributed import group
    from gipo_vla.learner.engine import build_engine, build_optimizer
    from gipo_vla.settings import runs

    settings = runs.load("train", ["experiment=point_reach"])
    device = group.choose_device("auto")
    with group.joined(device):
        policy: Any = build_policy(settings, environment_spec(settings), device)
        rates = dict.fromkeys(policy.parameter_groups(), 1e-3)
        optimizer = build_optimizer(policy, settings.learner, rates, dict.fromkeys(rates, 1.0))
        engine = build_engine(policy, optimizer, settings.learner, device, micro_batch=1, micro_batches=1)
        started = time.perf_counter() - began
        before = [parameter.detach().clone() for parameter in policy.parameters()]
        engine.backward(sum((parameter**2).sum() for parameter in policy.parameters()))
        engine.step()
        changed = any(not torch.equal(old, new) for old, new in zip(before, policy.parameters()))
    version = f"deepspeed {importlib.metadata.version('deepspeed')} on {device.type}"
    if not changed:
        raise UserError(f"{version} makes no updates")
    return f"{version}: up in {started:.1f} s, one update made"


SPHERE = """
<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='0.3' rgba='1 0 0 1'/>
<camera name='eye' pos='0 -2 0' xyaxes='1 0 0 0 0 1'/></worldbody></mujoco>"""


def probe_opengl() -> str:
    """Draw a picture of a small MuJoCo model."""
    import mujoco

    from gipo_envs import egl_devices, gl, rendering

    backend, reason = gl.choose()
    model = mujoco.MjModel.from_xml_string(SPHERE)
    data, camera = mujoco.MjData(model), mujoco.MjvCamera()
    mujoco.mj_forward(model, data)
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    draw = partial(rendering.shared().render, model, data, "sphere", camera, 256, 256, "default")
    frame = draw()
    if not (frame[128, 128, 0] > 100 and frame[128, 128, 1] < 90 and frame[2, 2, 0] < 50):
        raise UserError(f"{backend} draws a wrong picture")
    seconds = min(timeit.repeat(draw, number=1, repeat=5))
    device = egl_devices.drawing_device() if backend == "egl" else None
    where = "" if device is None else f" on EGL's device {device}"
    return f"{backend}{where} ({reason}): a 256 x 256 frame in {seconds * 1e3:.1f} ms"


PROBES: dict[str, Callable[[], str]] = {"deepspeed": probe_deepspeed, "opengl": probe_opengl}
SIMULATORS = {one.probe.name: one.probe for one in gipo_envs.families().values() if one.probe is not None}
"""Probes of the families of environments by name; families may share one."""

GL_REMEDY = "apt-get install libosmesa6, or set MUJOCO_GL"
CHECKS = (
    Check("python", check_python, needed=True),
    Check("versions", check_versions, needed=True),
    Check("processor", check_processor, needed=False),
    Check("disk", check_disk, needed=True),
    Check("shared memory", check_shared_memory, needed=True),
    Check("torch", check_torch, needed=True),
    Check("GPUs", check_gpus, needed=False),
    Check("deepspeed", partial(_probe, "deepspeed", "./scripts/setup.sh"), needed=True, apart=True),
    Check("OpenGL", partial(_probe, "opengl", GL_REMEDY), needed=False, apart=True),
    *(
        Check(one.name, partial(_probe, one.name, one.install), one.needed, True)
        for one in SIMULATORS.values()
    ),
    Check("wandb", check_wandb, needed=False),
)

if __name__ == "__main__":
    cli.run(main)
