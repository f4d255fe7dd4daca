"""``init_from``: the policy of another run as the one to start from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from gipo_envs.errors import UserError
from gipo_vla.checkpoint.policy_files import find_checkpoint, load_policy
from gipo_vla.policies.base import Policy
from gipo_vla.settings.runs import RunSettings, read_run


def find(config: RunSettings) -> Path:
    """The checkpoint that ``init_from`` names.

    Raises:
        UserError: there is none, or it is damaged.
    """
    assert config.init_from is not None
    return find_checkpoint(Path(config.init_from), "init_from")


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
    differing = _differences(asdict(there), asdict(config.policy), {*there.movable, *there.free})
    if differing:
        raise UserError(
            f"init_from={config.init_from} holds another policy ({'; '.join(differing[:3])}"
            f"{'; ...' if len(differing) > 3 else ''}): give this run the same policy settings"
        )
    assert isinstance(policy, nn.Module)
    try:
        load_policy(policy, origin)
    except UserError as error:
        raise UserError(
            f"init_from={config.init_from} does not fit this run's environment: {error}"
        ) from error


def _differences(
    there: dict[str, Any], here: dict[str, Any], free: Collection[str], prefix: str = "policy."
) -> list[str]:
    """``policy.key is x there, y here`` for every setting that must agree and does not.

    Args:
        free: settings of the policy on which neither its tensors nor their meaning depend.
    """
    found = []
    for key in sorted(there.keys() | here.keys()):
        one, other = there.get(key), here.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(one, other, (), f"{prefix}{key}.")
        elif one != other and key not in free:
            found.append(f"{prefix}{key} is {one!r} there, {other!r} here")
    return found
