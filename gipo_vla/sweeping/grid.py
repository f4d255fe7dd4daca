"""Combinations of what the overrides of a sweep list.

A grid is the product of all lists, once for each arm (settings that go together). With ``sample`` only the
seeds are a grid: every drawn combination runs with each of them, since seeds are replicates and not something
to search over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain, product

import numpy as np

from gipo_envs.errors import UserError
from gipo_vla.sweeping.settings import SweepSettings, key_of
from gipo_vla.sweeping.values import Parameter, parse

Combination = dict[str, str]
"""Key (with ``+``, where given) -> value as an override has it."""

REPLICATE = "seed"


def combinations(settings: SweepSettings) -> list[Combination]:
    """Return every combination of the sweep; whole replicates follow each other, so that the part of a sweep
    that is done first compares everything with everything.

    Raises:
        UserError: an override that cannot be read, a key given twice, an interval without ``sample``.
    """
    made: list[Combination] = []
    for arm in settings.arms or ((),):
        parameters = [*_parameters(arm), *_parameters(settings.overrides)]
        if settings.sample is None:
            made += _grid(parameters)
            continue
        seeds = _grid([one for one in parameters if one.key == REPLICATE])
        searched = [one for one in parameters if one.key != REPLICATE]
        for number in range(settings.sample):
            drawn = {one.name: _draw(one, settings.sample_seed, number) for one in searched}
            made += [drawn | seed for seed in seeds]
    seeds_in_order = list(dict.fromkeys(one.get(REPLICATE) for one in made))
    return sorted(made, key=lambda one: seeds_in_order.index(one.get(REPLICATE)))


def varied_keys(settings: SweepSettings) -> list[str]:
    """Return the keys that list more than one value, arms first, in the order given and the seed last."""
    values: dict[str, set[object]] = {}
    for text in (*chain(*settings.arms), *settings.overrides):
        one = parse(text)
        ends = (one.interval.low, one.interval.high) if one.interval else one.values
        values.setdefault(one.key, set()).update(ends)
    return sorted((key for key, own in values.items() if len(own) > 1), key=REPLICATE.__eq__)


def factor_keys(settings: SweepSettings) -> list[str]:
    """Return the keys in which jobs may differ: those varied, and those that only some arms set."""
    varied = varied_keys(settings)
    arms = [{key_of(text) for text in arm} for arm in settings.arms]
    listed = dict.fromkeys(key_of(text) for text in (*chain(*settings.arms), *settings.overrides))
    own = [key for key in listed if key in varied or 0 < sum(key in arm for arm in arms) < len(arms)]
    return sorted(own, key=REPLICATE.__eq__)


def _parameters(overrides: Sequence[str]) -> list[Parameter]:
    keys = [key_of(text) for text in overrides]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise UserError(f"{twice[0]} is given twice: list its values in one place, {twice[0]}=a,b")
    return [parse(text) for text in overrides]


def _grid(parameters: Sequence[Parameter]) -> list[Combination]:
    for parameter in parameters:
        if parameter.interval:
            raise UserError(
                f"{parameter.key} is an interval: say how many to draw with sample=N, or list values"
            )
    names = [one.name for one in parameters]
    return [dict(zip(names, chosen)) for chosen in product(*(one.values for one in parameters))]


def _draw(parameter: Parameter, sample_seed: int, number: int) -> str:
    """Return draw ``number`` of a key: the same whatever else is sampled, and however many are drawn."""
    key = int.from_bytes(hashlib.sha256(parameter.key.encode()).digest()[:8], "big")
    rng = np.random.default_rng([sample_seed, number, key])
    if parameter.interval:
        return parameter.interval.draw(rng)
    return parameter.values[int(rng.integers(len(parameter.values)))]
