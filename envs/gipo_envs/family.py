"""What a family of environments declares about itself.

A *family* is a set of tasks that one simulator plays: Meta-World is one, each suite of LIBERO is one.
Everything that the rest of the project must know of a family stands in its ``Family``: how to make an
environment, what a worker process costs, whether there are scripted experts, and how ``python -m
gipo_vla.doctor`` probes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gipo_envs.protocol import Environment, EnvironmentSettings, EnvironmentSpec, Observation

Expert = Callable[[Observation], NDArray[np.float32]]
"""A scripted expert: observation to action (A,) in [-1, 1], a pure function."""


class BareSimulator(Protocol):
    """A simulator as its own library offers it: the yardstick of ``python -m gipo_vla.benchmark rollout``."""

    def reset(self) -> object: ...

    def step(self, action: NDArray[np.float32]) -> object: ...


EGL_CONTEXT_BYTES = 90_000_000
"""GPU memory of a process that renders MuJoCo with EGL: 86 MiB in nvidia-smi's table of
github.com/google-deepmind/mujoco/issues/461."""


@dataclass(frozen=True)
class WorkerCost:
    """What one worker process costs: host memory in bytes, and seconds on one core.

    What is large in a worker belongs to its process and is shared by its environments: the simulator's
    libraries, and a compiled model (with its meshes and textures, where cameras look) for every task played.
    Bytes are without the pages of files, which the system can drop and all workers share; measured on Linux
    with software rendering.
    """

    libraries: int
    task: int = 0
    """For each task whose states alone are observed."""
    task_with_cameras: int = 0
    """For each task that is drawn."""
    cameras: int = 0
    """The libraries that draw."""
    tasks_kept: int | None = None
    """Most compiled tasks that a worker keeps; None: all of them."""
    env_step_seconds: float = 0.0
    """Of simulating one env step, for estimates of how long a run takes."""
    image_seconds: float = 0.0
    """Of drawing one camera's image."""

    def bytes(self, spec: EnvironmentSpec) -> int:
        """The memory of a worker that has played every task of ``spec``."""
        tasks = self._tasks(spec)
        if "images" in spec.observation:
            return self.libraries + self.cameras + tasks * self.task_with_cameras
        return self.libraries + tasks * self.task

    def drawing_bytes(self, spec: EnvironmentSpec) -> int:
        """The GPU memory of such a worker if it draws with EGL: its context, and for every task the meshes,
        textures and buffers that software rendering keeps on the host. An estimate; no GPU was measured."""
        if "images" not in spec.observation or not self.task_with_cameras:
            return 0
        return EGL_CONTEXT_BYTES + self._tasks(spec) * (self.task_with_cameras - self.task)

    def _tasks(self, spec: EnvironmentSpec) -> int:
        """Compiled tasks that a worker comes to hold."""
        return len(spec.tasks) if self.tasks_kept is None else min(len(spec.tasks), self.tasks_kept)


@dataclass(frozen=True)
class Probe:
    """A quick trial of a simulator on this machine."""

    name: str
    """What the doctor calls it."""
    run: Callable[[], str]
    """Makes an environment and steps it; returns what was seen in a sentence. May raise ``UserError``."""
    install: str
    """The command that installs what may be missing."""
    needed: bool = False
    """The doctor fails where the probe does."""


@dataclass(frozen=True)
class Family:
    """A family of environments. Register one with ``gipo_envs.register(Family(...))``."""

    name: str
    """The value of ``env.family``, and the option ``env=NAME``."""
    make_spec: Callable[[EnvironmentSettings], EnvironmentSpec]
    """Checks settings and describes the environment they mean. Must not import the simulator: the trainer
    calls it before any worker is started."""
    make: Callable[[EnvironmentSettings], Environment]
    """Constructs an environment in this process."""
    worker_cost: WorkerCost
    needs_opengl: bool = True
    """Images are drawn with OpenGL."""
    make_expert: Callable[[str], Expert] | None = None
    """The scripted expert of a task by its name; None where there are no experts."""
    expert_observations: tuple[Literal["state", "proprio", "landmarks"], ...] = ("state",)
    """What the experts read, whatever the policy that is cloned from them will see."""
    make_bare_simulator: Callable[[EnvironmentSettings, EnvironmentSpec, int], BareSimulator] | None = None
    """The library's own simulator of the first task, for settings, spec and the chunk after which cameras
    draw. None: there is no library behind the family."""
    probe: Probe | None = None
    """How ``python -m gipo_vla.doctor`` tries the family; several families may share one."""
    binary_gripper: bool = False
    """The last action opens (-1) or closes (+1) a gripper, which published data sets store as 1 and 0."""
