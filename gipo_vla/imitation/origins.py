"""``init_from``: the policy of another run as the one to start from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from gipo_envs.errors import UserError, first_three
from gipo_vla.checkpoint.policy_files import load_policy
from gipo_vla.policies.base import Policy
from gipo_vla.settings import registry
from gipo_vla.settings.runs import RunSettings, read_run


def load(policy: Policy, origin: Path, config: RunSettings) -> None:
    """Take over the weights of a checkpoint.

    Raises:
        UserError: it holds a policy of another kind or size; names the first setting that differs.
    """
    there = read_run(origin / "config.yaml").policy
    if there.name != config.policy.name:
        raise UserError(
            f"init_from={config.init_from} holds a policy {there.name}, this run's is {config.policy.name}: "
            "give this run the same policy"
        )
    differing = differences(there, config.policy)
    if differing:
        raise UserError(
            f"init_from={config.init_from} holds another policy ({first_three(differing, '; ')}): give this "
            "run the same policy settings"
        )
    assert isinstance(policy, nn.Module)
    try:
        load_policy(policy, origin)
    except UserError as error:
        raise UserError(
            f"init_from={config.init_from} does not fit this run's environment: {error}"
        ) from error


def differences(there: Any, here: Any) -> list[str]:
    """``policy.key is x there, y here`` for every setting of two policies that must agree and does not."""
    before, now = registry.flat(asdict(there)), registry.flat(asdict(here))
    return [
        f"policy.{key} is {before.get(key)!r} there, {now.get(key)!r} here"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in {*there.movable, *there.free}
    ]
