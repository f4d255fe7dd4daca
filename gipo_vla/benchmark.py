"""Measure this installation: ``python -m gipo_vla.benchmark NAME [options] [overrides]``.

    rollout     env steps a second of the worker pool, alone and with policy, segmenting and replay, beside
                the simulator's own step in as many processes; as ratios within one run. env=libero_spatial:
                beside LIBERO's own environment with cameras drawn once a chunk, and naively in every step
    policy      a vision-language-action network: decisions a second of act, samples a second of evaluate and
                backward, peak memory beside the plan, share of the device's matrix peak, and the numerical
                floor of |log rho| in float32 and bfloat16
                (policy=openvla_oft_7b policy.random_weights=true needs no checkpoint)
    cost        what a trained sample takes, counted on tensors without numbers and turned into time for a
                card: operations, bytes, kernels, host waits, saved activations, peak by size of the
                micro-batch (experiment=libero_spatial_oft7b_1gpu; needs no GPU and no checkpoint)
    training    whole iterations of a run, also under torchrun: samples a second of the learner alone and end
                to end, env steps a second, the copy to the behaviour twin, memory beside the plan
    record      observations of an environment under random actions, for env=recorded env.assets=FOLDER on a
                machine without its simulator
    credit      milliseconds that each credit takes of an iteration of 64 rollouts x 64 chunks, and its share
                of the wall time of one, measured in the same run
    endurance   a training run from beginning to end, and whether it holds on to more and more: memory, file
                descriptors, threads, shared memory, disk; slopes over its iterations (out=FOLDER)
    soak        small runs of every kind under faults, resumed until they are finished and compared with runs
                that nobody disturbed: minutes=30 seed=0 out=FOLDER (docs/reliability.md); exit status 1 if
                anything was lost
    suite       all that one wants to know of a GPU, within a budget and without network: doctor, floor, speed
                and memory of the 7B with random weights, resuming to the bit, two ranks; beside goals and
                counts (out=FOLDER minutes=9; size=tiny: a dry run anywhere); exit status 1 if a part gave no
                figures

Prints a table for people and one line of JSON on stdout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module

from omegaconf import OmegaConf

from gipo_envs.errors import UserError, nearest
from gipo_vla import cli, options
from gipo_vla.benchmarks import NAMES, Options
from gipo_vla.distributed.group import rank
from gipo_vla.settings import composition, runs
from gipo_vla.settings.schema import TrainingSettings


def main(arguments: Sequence[str]) -> int:
    names = [text for text in arguments if text[:1] not in "-~+" and "=" not in text]
    parsed = options.parse(
        arguments if "--help" in arguments else [text for text in arguments if text not in names],
        Options,
        __doc__ or "",
        TrainingSettings,
    )
    if parsed is None:
        return 0
    own, overrides = parsed
    if len(names) != 1 or names[0] not in NAMES:
        given = " ".join(names)
        raise UserError(f"which benchmark? {given!r} is none; {nearest(given, NAMES)}")
    # Imported by name, so that a measurement of simulators loads no transformers.
    module = import_module(f"gipo_vla.benchmarks.{names[0]}")
    presets = module.presets(own) if hasattr(module, "presets") else ()
    figures = module.run(_settings(_with(presets, overrides)), own)
    status = int(figures.pop("status", 0))
    if rank() == 0:
        print(json.dumps({"benchmark": names[0], **figures}))
    return status


def _with(presets: Sequence[str], overrides: list[str]) -> list[str]:
    """A measurement's own settings, where the command says nothing of them."""
    given = {text.partition("=")[0] for text in overrides}
    return [*(text for text in presets if text.partition("=")[0] not in given), *overrides]


def _settings(overrides: list[str]) -> TrainingSettings:
    """Without an experiment, an environment stands for itself, not for what the default one makes of it."""
    given = dict(text.partition("=")[::2] for text in overrides)
    if "env" not in given or "experiment" in given:
        return runs.load("train", overrides)
    defaults = {}
    if given["env"].startswith("libero_"):
        defaults = {"env.task": "0", "rollout.envs_per_worker": "2"}
        if "policy" not in given:  # a small policy that takes the images along and leaves the time to others
            defaults |= {"policy.chunk": "8", "env.observations": "[images,proprio,state]"}
            defaults |= {"replay.segment_length": "8"}
    missing = [f"{key}={value}" for key, value in defaults.items() if key not in given]
    values = OmegaConf.to_container(composition.compose_yaml("train", ["~experiment", *missing, *overrides]))
    assert isinstance(values, dict)
    named = {str(key): value for key, value in values.items()}
    return runs.typed({"experiment": "benchmark", "iterations": 1, **named}, TrainingSettings)


if __name__ == "__main__":
    cli.run(main)
