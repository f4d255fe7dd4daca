"""What a simulator looks like to the rest of the project.

One environment object simulates one robot and can be reset to any of its tasks. It is deterministic: the
same (task, initial state, seed, actions) gives the same bits in observations, rewards and successes, in
any process. It holds no random generator of its own between episodes; that is why a simulator's whole
state can be kept by its owner as those four things and restored by replaying the actions.

Time is counted in *env steps*, the simulator's control steps. An action is held for ``action_repeat`` env
steps; a *chunk* is K actions executed open loop.

Shape suffixes: K actions of a chunk, A action dimensions, C cameras, H height, W width, P proprioception,
S state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

EVALUATION_KEYS_START = 1_000_000
"""Initial-state keys below are for training, from here on for evaluation (every environment)."""

Observation = dict[str, NDArray[Any]]
"""Arrays by name, those that ``EnvironmentSpec.observation`` lists, out of:
``images`` uint8 (C, H, W, 3); ``proprio`` float32 (P,); ``state`` float32 (S,); ``task`` int64 ();
``landmarks`` float32, one number for each of ``EnvironmentSpec.landmarks``."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype name of one array of an observation."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Landmark:
    """One number that says where the task stands, read off the simulator: for credits, scripted experts, and
    policies that do without cameras."""

    name: str
    """``hand x``, ``hand y`` and ``hand z`` are the position of the hand wherever there is one."""
    kind: Literal["position", "truth", "direction"]
    """position: metres. truth: 0 or 1. direction: a number of a unit vector, -1 to 1."""


def positions(*things: str) -> tuple[Landmark, ...]:
    """The landmarks of the positions of things: x, y and z of each."""
    return tuple(Landmark(f"{thing} {axis}", "position") for thing in things for axis in "xyz")


@dataclass(frozen=True)
class EnvironmentSpec:
    """What a policy and a replay must know of an environment; the same for all of its tasks."""

    tasks: tuple[str, ...]
    """Task names; ``Observation["task"]`` and the ``task`` of ``reset`` index this tuple."""
    instructions: tuple[str, ...]
    """One natural-language instruction a task."""
    observation: dict[str, ArraySpec]
    action_size: int
    step_limit: int
    """Env steps after which an episode is truncated."""
    action_repeat: int
    """Env steps for which each action is held."""
    end_on_success: bool
    """A training episode terminates at its first success."""
    reward_scale: float
    """Multiply rewards by this for learning (returns of about 1); metrics stay unscaled."""
    frames_per_second: float
    """Control steps a second of simulated time, for videos."""
    landmarks: tuple[Landmark, ...] = ()
    """What the observation ``landmarks`` holds where the settings ask for it; empty if there is none."""
    evaluation_ends_on_success: bool = False
    """As in a published evaluation protocol that ends episodes so; success at the end then says nothing."""
    training_keys: tuple[int, int] = (0, EVALUATION_KEYS_START)
    """Half-open range of initial-state keys for training."""
    evaluation_keys: tuple[int, int] = (EVALUATION_KEYS_START, 2 * EVALUATION_KEYS_START)
    """Half-open range of initial-state keys for evaluation; never drawn in training."""

    @property
    def actions_limit(self) -> int:
        """Most actions that an episode can take (step limit over action repeat, rounded up)."""
        return -(-self.step_limit // self.action_repeat)


@dataclass(frozen=True)
class ChunkResult:
    """What a chunk of K actions led to. Rows from ``executed`` on are zero."""

    observation: Observation
    """After the last executed action."""
    rewards: NDArray[np.float32]
    """(K,) unscaled; each the sum over the env steps for which the action was held."""
    executed: int
    """1..K actions were executed before the episode ended."""
    success: NDArray[np.bool_]
    """(K,) the task's success in any of the env steps of the action."""
    success_at_end: bool
    """Success in the last env step executed."""
    terminated: bool
    """The task is really over (``end_on_success``); its value is 0."""
    truncated: bool
    """The step limit was reached; its value is to be bootstrapped."""


class Environment(Protocol):
    """One simulator. Not thread-safe; rendering contexts belong to the process that made them.

    What a simulator can do for the next episode in idle time, it may offer besides, and a worker calls it
    then: ``prepare(task)`` makes what the task needs, ``rehearse(initial_state, task)`` simulates ahead what
    the reset needs. Neither may change the episode under way, nor any episode's numbers.
    """

    @property
    def spec(self) -> EnvironmentSpec: ...

    def reset(
        self,
        initial_state: int,
        seed: int,
        task: int = 0,
        step_limit: int | None = None,
        end_on_success: bool | None = None,
    ) -> Observation:
        """Start an episode.

        Args:
            initial_state: key of the task's own sampler (see ``training_keys``, ``evaluation_keys``).
            seed: for whatever else the simulator draws.
            task: index into ``spec.tasks``.
            step_limit: env steps after which this episode is truncated; ``spec.step_limit`` by default
                (a pool staggers first episodes with it).
            end_on_success: for this episode; ``spec.end_on_success`` by default (an evaluation of success
                at the end of the episode does not end on success, however the policy was trained).
        """
        ...

    def step_chunk(self, actions: NDArray[np.float32]) -> ChunkResult:
        """Execute actions (K, A) in [-1, 1] until done; observe once, at the end."""
        ...

    def replay(self, actions: NDArray[np.float32]) -> None:
        """Execute actions (N, A) of an episode under way without observing or rendering.

        Afterwards the environment is, to the bit, where stepping the same actions would have put it;
        ``observe`` returns what the last step would have returned.
        """
        ...

    def observe(self) -> Observation:
        """The observation of the present state (rendering if the spec names images)."""
        ...

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        """A picture (height, width, 3) of the present state, for videos; changes nothing."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class CameraSettings:
    """How images are made."""

    names: tuple[str, ...] = ("corner2",)
    """Cameras, in the order in which a policy gets their images."""
    height: int = 64
    """Pixels."""
    width: int = 64
    """Pixels."""
    quality: Literal["fast", "default"] = "fast"
    """fast: no multisampling, shadows or reflections (ten times cheaper on a CPU); default: MuJoCo's own."""
    format: str = "raw"
    """Name of an image format (gipo_envs.image_formats) that the worker applies to every frame."""


@dataclass(frozen=True)
class EnvironmentSettings:
    """All that is needed to make an environment, in this process or in a worker."""

    movable: ClassVar[tuple[str, ...]] = ("assets",)
    """Settings that a resumed run may change."""

    family: str
    """metaworld, point_reach, recorded, or a suite of LIBERO: libero_spatial, libero_object, libero_goal,
    libero_10, libero_90."""
    task: str | int | tuple[str | int, ...] = "all"
    """A task's name or number, several of them, or a group's name (all; Meta-World: MT10, MT50)."""
    observations: tuple[Literal["state", "proprio", "images", "landmarks"], ...] = ("state",)
    """What is observed. ``landmarks`` are added by the credits that need them."""
    camera: CameraSettings = field(default_factory=CameraSettings)
    """Where images are observed."""
    reward: Literal["dense", "sparse"] = "dense"
    """dense: the simulator's own reward of every step. sparse: 1 at a success."""
    reward_scale: float | None = None
    """Rewards are multiplied by this for learning. None: the family's own scale for the kind of reward."""
    end_on_success: bool | None = None
    """A training episode ends at its first success. None: false with dense reward, true with sparse
    reward."""
    step_limit: int | None = None
    """Env steps after which an episode is truncated; None: the family's own."""
    action_repeat: int = 1
    """Env steps for which each action is held."""
    assets: str | None = None
    """LIBERO's asset folder (None: the variable LIBERO_ASSETS, else hf-libero's own download), or a
    recording's."""
    evaluation_states: Literal["published", "sampled"] = "published"
    """Initial states that are evaluated. published: those of the environment's published protocol, where it
    has one (LIBERO: 50 a task). sampled: drawn as in training, by keys that training never draws; as many as
    are asked for."""
    train_on_evaluation_states: bool = False
    """Train on the very initial states that are evaluated, for comparison with papers that did."""
