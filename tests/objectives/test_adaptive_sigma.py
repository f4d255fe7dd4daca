"""sigma=auto: its formula by an independent integral and by simulation, and what it does with data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, optimize

from gipo_vla.objectives import GipoSettings
from gipo_vla.objectives.adaptive_sigma import CANDIDATES, DECAY, AdaptiveSigma
from gipo_vla.objectives.base import adaptive_of
from gipo_vla.objectives.diagnostics import effective_sample_size
from gipo_vla.settings import registry

STEP = math.exp(math.log(2.0 / 0.2) / (CANDIDATES - 1))
"""Ratio of neighbouring candidates."""


def formula(sigma: float, spread: float) -> float:
    """The page's: the effective sample size for log rho ~ N(0, spread^2)."""
    v = (spread / sigma) ** 2
    return math.sqrt(1 + 2 * v) / (1 + v) * math.exp(-(spread**2) / ((1 + v) * (1 + 2 * v)))


def of_draws(sigma: float, spread: float) -> float:
    """The page's for log rho ~ N(-spread^2 / 2, spread^2), with which the mean ratio is 1."""
    v, mean = (spread / sigma) ** 2, -(spread**2) / 2

    def log_moment(p: int) -> float:
        exponent = p * p * spread**2 / 2 + p * mean - p * v * mean**2 / (2 * spread**2)
        return exponent / (1 + p * v) - math.log(1 + p * v) / 2

    return math.exp(2 * log_moment(1) - log_moment(2))


def best(spread: float, size: Callable[[float, float], float] = formula) -> float:
    found = optimize.minimize_scalar(lambda log: -size(math.exp(log), spread), bounds=(-3, 3))
    return math.exp(found.x)


def pack(log_ratio: Any, advantages: Any = 1.0, valid: Any = 1.0) -> torch.Tensor:
    """(T, 5) as the learner gathers them."""
    log_ratio = torch.as_tensor(log_ratio, dtype=torch.float64)
    columns = (log_ratio, 0.0, advantages, 0.0, valid)
    return torch.stack(
        [torch.as_tensor(own, dtype=torch.float64).expand(log_ratio.shape) for own in columns], -1
    )


def adaptive(**changes: Any) -> AdaptiveSigma:
    made = GipoSettings(sigma="auto", **changes).adaptive()
    assert made is not None
    return made


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("sigma", [0.2, 0.7, 1.0, 3.0])
def test_the_formulas_are_the_integrals(sigma: float, spread: float) -> None:
    for mean, expected in ((0.0, formula(sigma, spread)), (-(spread**2) / 2, of_draws(sigma, spread))):

        def moment(power: int, mean: float = mean) -> float:
            def term(x: float) -> float:
                density = math.exp(-(((x - mean) / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
                return density * math.exp(power * (x - (x / sigma) ** 2 / 2))

            return float(integrate.quad(term, -40, 40, points=[-1, 0, 1, 4], limit=400)[0])

        assert moment(1) ** 2 / moment(2) == pytest.approx(expected, rel=1e-8)


def test_the_best_sigma_for_a_spread() -> None:
    for spread, sigma in ((1e-3, 1 / math.sqrt(3)), (0.5, 0.754), (1.0, 0.953), (2.0, 1.268)):
        assert best(spread) == pytest.approx(sigma, abs=1e-3)
    assert best(100.0) == pytest.approx(math.sqrt(100 / math.sqrt(2)), rel=0.01), "grows like sqrt(s)"
    for spread in (0.1, 0.5, 1.0, 1.5):
        assert formula(1.0, spread) > 0.98 * formula(best(spread), spread), "1 loses next to nothing"


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [formula, of_draws])
def test_it_finds_the_best_sigma_in_a_simulation(spread: float, size: Any) -> None:
    rng = np.random.default_rng(0)
    tuner = adaptive(sigma_neg_ratio=1.0)
    for _ in range(40):
        log_ratio = rng.normal(0 if size is formula else -(spread**2) / 2, spread, 5000)
        tuner.observe(pack(log_ratio, rng.choice([-1.0, 1.0], 5000)))
    # A flat maximum: the neighbour of the nearest candidate may win.
    sigma = best(spread, size)
    assert sigma / STEP**1.5 < tuner.sigma < sigma * STEP**1.5
    at = tuner.effective_sample_sizes()[tuner.candidates.index(tuner.sigma)]
    assert at == pytest.approx(size(sigma, spread), abs=0.01)


KERNELS = [{}, {"kernel": "laplacian"}, {"sigma_neg_ratio": 0.25, "kernel": "cauchy"}]


@pytest.mark.parametrize("changes", KERNELS, ids=repr)
def test_it_is_the_coefficients_own_sample_size(changes: Any) -> None:
    """It is that of the objective as it is set, over one update, for every candidate."""
    rng = np.random.default_rng(1)
    log_ratio, advantages = rng.normal(0.2, 0.8, 300), rng.normal(size=300)
    valid = (rng.random(300) < 0.8).astype(float)
    tuner = adaptive(**changes)
    tuner.observe(pack(log_ratio, advantages, valid))
    sizes = []
    for sigma in tuner.candidates:
        settings = GipoSettings(sigma=sigma, **changes)
        own = settings.surrogate(torch.as_tensor(log_ratio), torch.as_tensor(advantages))
        sizes.append(effective_sample_size(own.coefficient.numpy()[valid > 0]))
    assert tuner.effective_sample_sizes() == pytest.approx(sizes)
    assert tuner.sigma == tuner.candidates[int(np.argmax(sizes))]


def test_what_is_masked_may_be_anything_and_cuts_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    log_ratio = rng.normal(0, 1, 400)
    plain, padded = adaptive(), adaptive()
    plain.observe(pack(log_ratio))
    packed = torch.cat([pack(np.full(50, 700.0), valid=0.0), pack(log_ratio)])
    padded.observe(packed)
    assert padded.effective_sample_sizes() == pytest.approx(plain.effective_sample_sizes())


def test_recent_updates_count_most() -> None:
    rng = np.random.default_rng(3)
    tuner = adaptive(sigma_neg_ratio=1.0)
    for _ in range(20):
        tuner.observe(pack(rng.normal(0, 2.0, 1000)))
    wide = tuner.sigma
    for _ in range(100):
        tuner.observe(pack(rng.normal(0, 0.5, 1000)))
    assert tuner.sigma < 0.85 < 1.1 < wide
    assert 0 < DECAY < 1


def test_bounds_start_and_nothing_to_learn_from() -> None:
    assert adaptive().sigma == 1.0 and adaptive(auto_highest=0.6).sigma == 0.6
    still = adaptive()
    for nothing in (pack(np.zeros(100)), pack(np.ones(100), valid=0.0), pack(np.zeros(0))):
        still.observe(nothing)
        # The nearest candidate to 1: they are 6 % apart.
        assert abs(math.log(still.sigma)) < math.log(STEP)
    narrow = adaptive(auto_lowest=0.2, auto_highest=0.4)
    narrow.observe(pack(np.random.default_rng(4).normal(0, 3, 1000)))
    assert narrow.sigma == 0.4
    assert narrow.metrics() == {"objective/sigma": 0.4}
    assert narrow.settings == GipoSettings(sigma=0.4, auto_highest=0.4)


def test_saved_and_loaded_it_goes_on_to_the_bit() -> None:
    rng = np.random.default_rng(5)
    data = [pack(rng.normal(0, 0.1 + 0.2 * index, 500)) for index in range(8)]
    whole, first, second = adaptive(), adaptive(), adaptive()
    for own in data:
        whole.observe(own)
    for own in data[:3]:
        first.observe(own)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for own in data[3:]:
        second.observe(own)
    assert second.state_dict() == whole.state_dict()
    other = adaptive(auto_highest=0.5)
    other.load_state_dict(whole.state_dict())
    assert other.sigma == 0.5 and other.effective_sample_sizes() == [0.0] * CANDIDATES, "other bounds"


def test_auto_is_a_setting_and_a_number_has_no_state() -> None:
    assert registry.objectives.validate({"name": "gipo", "sigma": "auto"}) == GipoSettings(sigma="auto")
    assert adaptive_of(GipoSettings()) is None
    with pytest.raises(ValueError, match="sigma is auto"):
        GipoSettings(sigma="auto").surrogate(torch.zeros(1), torch.ones(1))


def test_table_of_the_page() -> None:
    """s, best sigma, ESS there, at sigma 1, and without a kernel; the best sigma where the mean ratio is
    1."""
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    section = page.partition("## sigma=auto")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (near 0|[\d.]+) \|((?: [\d.]+ \|){5})$", section, re.MULTILINE)
    assert len(rows) == 5
    for name, cells in rows:
        spread = 1e-3 if name == "near 0" else float(name)
        sizes = [formula(sigma, spread) for sigma in (best(spread), 1.0, 1e6)]
        expected = [f"{value:.2f}" for value in (best(spread), *sizes, best(spread, of_draws))]
        assert cells.replace("|", " ").split() == expected, name


def test_what_the_page_says_of_the_asymmetric_default() -> None:
    """sigma is about 1.2 at s = 1 with sigma_neg_ratio 0.5."""
    rng = np.random.default_rng(6)
    tuner = adaptive()
    tuner.observe(pack(rng.normal(0, 1.0, 400_000), rng.choice([-1.0, 1.0], 400_000)))
    assert 1.2 / STEP < tuner.sigma < 1.2 * STEP
