"""A trained policy in somebody's own program: load a checkpoint, step an environment, write a video.

    python -m gipo_vla.train experiment=point_reach run_dir=runs/points
    python examples/use_a_policy.py runs/points points.mp4

prints how each episode ended. The first argument is a run folder (its newest checkpoint is taken) or one of
its checkpoints. Where the run was made with plugins, name them: ``GIPO_PLUGINS=examples.own_policy python
examples/use_a_policy.py ...``; a folder that is read never makes anything be imported by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import imageio
import torch

import gipo_envs
from gipo_vla import cli
from gipo_vla.assembly import environment_spec, named_run, policy_at

EPISODES = 5
CPU = torch.device("cpu")


def main(run: Path, video: Path) -> list[bool]:
    """Plays some held-out episodes greedily; returns which of them succeeded."""
    settings, checkpoint = named_run(str(run), overrides=())
    spec = environment_spec(settings)
    policy = policy_at(settings, spec, CPU, checkpoint)
    environment = gipo_envs.make(settings.env)
    frames, outcomes = [], []
    for episode in range(EPISODES):
        # Initial states are numbered; training never draws those from evaluation_keys[0] on.
        observation = environment.reset(spec.evaluation_keys[0] + episode, seed=0, end_on_success=False)
        succeeded = over = False
        while not over:
            batch = {name: torch.from_numpy(array)[None] for name, array in observation.items()}
            decision = policy.act(batch, temperature=1.0, greedy=True)
            actions = policy.decode(decision.tokens)[0].numpy()  # a chunk (K, A) in [-1, 1]
            result = environment.step_chunk(actions)
            observation, over = result.observation, result.terminated or result.truncated
            succeeded |= bool(result.success.any())
            frames.append(environment.render(288, 384))
        outcomes.append(succeeded)
        print(f"episode {episode}: {'success' if succeeded else 'no success'}")
    environment.close()
    imageio.mimwrite(video, frames, fps=spec.frames_per_second, macro_block_size=16)
    return outcomes


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    cli.run(lambda arguments: int(not main(Path(arguments[0]), Path(arguments[1]))))
