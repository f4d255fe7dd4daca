"""What a run will need, beside what there is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from gipo_envs import registry as families
from gipo_envs.errors import UserError
from gipo_vla import sft
from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.policies.openvla_oft.construction import build
from gipo_vla.policies.openvla_oft.memory import prompt_tokens
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
from gipo_vla.rollout.episodes import TrainingEpisodes
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.run import memory
from gipo_vla.run.memory import GIB, Limits, container_limit
from gipo_vla.run.plan import RunPlan, plan_run
from gipo_vla.run.resume import Start
from gipo_vla.settings import composition, runs
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import console
from gipo_vla.train import train
from tests.conftest import TINY_VLA, MakeConfig, needs_libero

pytestmark = needs_libero

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLENTY = 2**50


@pytest.fixture
def tiny_vla(tmp_path: Path) -> TrainingSettings:
    overrides = ("experiment=point_reach", *TINY_VLA, f"run_dir={tmp_path / 'run'}", "telemetry.wandb=off")
    return runs.load("train", overrides)


@pytest.fixture
def seven_billion() -> TrainingSettings:
    """Random weights, two cameras of LIBERO."""
    overrides = ("env=libero_spatial", "policy=openvla_oft_7b", "policy.random_weights=true")
    images = ("env.camera.format=openvla", "env.step_limit=220", "replay.segment_length=8", "env.task=all")
    values = composition.compose_yaml("train", ["~experiment", *overrides, *images])
    return runs.typed({"experiment": "seven_billion", "iterations": 1, **values}, TrainingSettings)


def planned(settings: TrainingSettings, device: torch.device = CUDA, world: int = 1) -> RunPlan:
    return plan_run(settings, environment_spec(settings), world, device)


def changed(settings: TrainingSettings, section: str, **values: object) -> TrainingSettings:
    return replace(settings, **{section: replace(getattr(settings, section), **values)})


def test_the_weights_of_a_cpu_run_count_as_host_memory(tiny_vla: TrainingSettings) -> None:
    cpu, cuda = planned(tiny_vla, CPU).memory, planned(tiny_vla, CUDA).memory
    assert cpu.on_host and cpu.host > cpu.resident > cpu.device > 0
    assert not cuda.on_host and cuda.policy.overhead > 0
    assert cuda.resident == cuda.replay + cuda.batches + cuda.process
    policy = build(tiny_vla.policy, environment_spec(tiny_vla))  # type: ignore[arg-type]
    weights = sum(4 * parameter.numel() for parameter in policy.parameters())
    assert cpu.policy.trainable == cpu.policy.twin == weights


def test_small_policies_are_counted_too(make_config: MakeConfig) -> None:
    settings = make_config("policy.hidden=[16,8]", "policy.bins=16")
    need = planned(settings, CPU)
    policy = build_policy(settings, environment_spec(settings), CPU)
    assert isinstance(policy, torch.nn.Module)
    weights = sum(4 * parameter.numel() for parameter in policy.parameters())
    assert need.memory.policy.trainable == need.memory.policy.twin == weights
    assert 0 < need.memory.device < 10_000_000 and 0 < need.memory.replay < 10_000_000
    assert need.problem(Limits(PLENTY, None)) is None


def test_7b_fits_an_h200_and_no_small_card(seven_billion: TrainingSettings) -> None:
    settings = changed(seven_billion, "learner", micro_batch_segments=1, batch_segments=8)
    need = planned(settings)
    assert 13.6 * GIB < need.memory.policy.frozen < 14.2 * GIB
    assert need.problem(Limits(PLENTY, 139 * GIB)) is None
    line = need.problem(Limits(PLENTY, 16 * GIB))
    assert line is not None and "GPU memory" in line and "\n" not in line


def test_what_simulators_draw_with_is_on_the_device(
    seven_billion: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, each with a context (86 MiB) and the meshes and textures of ten tasks."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    settings = changed(seven_billion, "rollout", workers=2)
    plan = planned(settings)
    need = plan.memory
    assert need.drawing == 2 * (90_000_000 + 10 * 110_000_000)
    assert need.device == need.policy.total + need.drawing
    # torch's own count, with which it is compared at the end, has neither.
    assert plan.predicted()["device_bytes"] == need.policy.total - need.policy.overhead
    line = plan.problem(Limits(PLENTY, need.policy.total))
    assert line is not None and "rollout.workers (2)" in line and "drawing" in line
    assert plan.problem(Limits(PLENTY, need.device)) is None
    assert planned(settings, CPU).memory.drawing == 0
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert planned(settings).memory.drawing == 0


def on_a_cpu(*overrides: str) -> TrainingSettings:
    """The 7B network with random weights and one camera: the least that it can be trained with."""
    small = (
        "replay.capacity=64",
        "learner.batch_segments=1",
        "rollout.workers=1",
        "learner.precision=bfloat16",
    )
    policy = ("policy=openvla_oft_7b", "policy.random_weights=true", "replay.segment_length=1")
    camera = ("env.observations=[images]", "env.camera.height=224", "env.camera.width=224")
    return runs.load("train", ["experiment=point_reach", *small, *policy, *camera, *overrides])


@pytest.mark.parametrize("samples", [1, 2])
def test_7b_on_a_cpu_is_planned_as_it_was_measured(samples: int) -> None:
    """One iteration with random weights, one camera and one update in bfloat16 took 17.05 GiB.

    How many decisions its micro-batch had was not recorded; they were few.
    """
    settings = on_a_cpu(f"replay.segment_length={samples}")
    assert planned(settings, CPU).memory.host / GIB == pytest.approx(17.05, rel=0.05)


def test_two_ranks_with_7b_do_not_fit_into_24_gib() -> None:
    """Smaller batches would not help: the ranks are to be fewer. In float32 not even one fits."""
    settings = on_a_cpu("learner.batch_segments=2")
    machine = Limits(24 * GIB, None, ranks=2)
    line = planned(settings, CPU, world=2).problem(machine)
    assert line is not None and "\n" not in line
    for part in ("2 ranks need 33.32 GiB", "there are 24.00 GiB", "--nproc-per-node=1"):
        assert part in line
    assert planned(settings, CPU).problem(replace(machine, ranks=1)) is None
    line = planned(changed(settings, "learner", precision="float32"), CPU).problem(replace(machine, ranks=1))
    assert line is not None and line.endswith("set learner.precision=bfloat16")


def test_states_are_not_drawn(make_config: MakeConfig) -> None:
    assert planned(make_config()).memory.drawing == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learner": {"micro_batch_segments": 32}}, "learner.micro_batch_segments (32)"),
        (
            {"learner": {"micro_batch_segments": 1}, "replay": {"segment_length": 27}},
            "replay.segment_length (27)",
        ),
        ({"policy": {"activation_checkpointing": False}}, "policy.activation_checkpointing=true"),
        ({"policy": {"training": "full"}}, "policy.training=lora"),
        ({"learner": {"precision": "float32", "micro_batch_segments": 1}}, "learner.precision=bfloat16"),
    ],
)
def test_the_setting_to_lower_on_the_device_is_named(
    seven_billion: TrainingSettings, changes: dict[str, dict[str, object]], named: str
) -> None:
    for section, values in changes.items():
        seven_billion = changed(seven_billion, section, **values)
    line = planned(seven_billion).problem(Limits(PLENTY, 15 * GIB))
    assert line is not None and named in line


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"replay": {"capacity": 200_000, "memory_limit_gb": 500.0}}, "replay.capacity (200000)"),
        ({"rollout": {"workers": 64}, "replay": {"capacity": 2000}}, "rollout.workers (64)"),
        (
            {"replay": {"capacity": 22_400}, "learner": {"batch_segments": 2800}, "rollout": {"workers": 1}},
            "learner.batch_segments (2800)",
        ),
    ],
)
def test_the_setting_to_lower_on_the_host_is_named(
    seven_billion: TrainingSettings, changes: dict[str, dict[str, object]], named: str
) -> None:
    for section, values in changes.items():
        seven_billion = changed(seven_billion, section, **values)
    line = planned(seven_billion).problem(Limits(8 * GIB, PLENTY))
    assert line is not None and named in line and "host memory" in line


def test_ranks_of_a_machine_share_its_memory(make_config: MakeConfig) -> None:
    settings = make_config()
    need = planned(settings, CPU, world=4)
    assert need.memory.replay < planned(settings, CPU).memory.replay
    enough = Limits(4 * need.memory.host, None, ranks=4)
    assert need.problem(enough) is None
    line = need.problem(replace(enough, host=enough.host - 1))
    assert line is not None and line.startswith("4 ranks need")


def refuses(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> str:
    """The message of a run on a machine of 1 MB, which must come before weights and workers."""

    def not_yet(*_: object, **__: object) -> None:
        raise AssertionError("something was spent before the refusal")

    kinds = ("reinforcement.build_policy", "cloning.build_policy", "cloning.sources.obtain")
    for place in ("pipeline.WorkerPool", *(f"run.{kind}" for kind in kinds)):
        monkeypatch.setattr(f"gipo_vla.{place}", not_yet)
    monkeypatch.setattr("gipo_vla.run.start.machine_limits", lambda device: Limits(1_000_000, None))
    with pytest.raises(UserError) as error:
        run()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_train_refuses_before_anything_is_spent(
    tiny_vla: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "host memory" in refuses(monkeypatch, lambda: train(Start(tiny_vla, None)))
    assert tiny_vla.run_dir is not None and not Path(tiny_vla.run_dir).exists()


def test_sft_refuses_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = runs.load_sft(["experiment=metaworld_oft_tiny_sft", f"run_dir={tmp_path / 'run'}"])
    need = plan_run(settings, environment_spec(settings), 1, CUDA)
    assert need.memory.replay == 0 and need.memory.policy.twin == 0
    line = need.problem(Limits(PLENTY, need.memory.policy.frozen))
    assert line is not None and "policy." in line
    monkeypatch.setattr("gipo_envs.gl.choose", lambda: ("none", "needed"))
    assert "host memory" in refuses(monkeypatch, lambda: sft.clone(Start(settings)))


def test_the_plan_is_shown(tiny_vla: TrainingSettings, capsys: pytest.CaptureFixture[str]) -> None:
    console.print(planned(tiny_vla).memory_table(Limits(8 * GIB, 16 * GIB, ranks=2)))
    table = capsys.readouterr().err
    for name in (
        "trained weights",
        "activations, micro-batch of",
        "replay",
        "simulator workers",
        "for 2 ranks",
    ):
        assert name in table


def test_prompt_lengths_are_not_underestimated(tiny_vla: TrainingSettings) -> None:
    spec = environment_spec(tiny_vla)
    assert isinstance(tiny_vla.policy, OpenVlaOftSettings)
    assert prompt_tokens(tiny_vla.policy, spec) == build(tiny_vla.policy, spec).prompt_ids.shape[1]
    published = OpenVlaOftSettings(checkpoint="somewhere")
    text = "pick up the black bowl between the plate and the ramekin and place it on the plate"
    assert 30 <= prompt_tokens(published, replace(spec, instructions=(text,))) <= 60


# ------------------------------------------------------------------------------------------------ machine


def test_containers_limit_host_memory(tmp_path: Path) -> None:
    cgroups, own = tmp_path / "cgroups", tmp_path / "own"
    inner = cgroups / "pod" / "container"
    inner.mkdir(parents=True)
    assert container_limit(cgroups, own) is None
    own.write_text("0::/pod/container\n")
    (inner / "memory.max").write_text("max\n")
    assert container_limit(cgroups, own) is None
    (cgroups / "pod" / "memory.max").write_text("4096\n")
    assert container_limit(cgroups, own) == 4096
    (cgroups / "memory.max").write_text("1024\n")  # inside the container its own group is the root
    assert container_limit(cgroups, own) == 1024


def test_containers_of_the_first_version(tmp_path: Path) -> None:
    cgroups, own = tmp_path / "cgroups", tmp_path / "own"
    (cgroups / "memory").mkdir(parents=True)
    own.write_text("5:cpu:/\n4:memory:/\n")
    (cgroups / "memory" / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    assert container_limit(cgroups, own) == 2 * GIB


def test_this_machine_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", "3")
    limits = memory.machine_limits(CPU)
    assert limits.device is None and limits.ranks == 3
    assert 0 < limits.host <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    "overrides",
    [(), ("env=metaworld", "env.task=[reach-v3,push-v3]", "env.step_limit=16", "replay.segment_length=4")],
    ids=["point_reach", "metaworld"],
)
def test_workers_take_no_more_than_planned(make_config: MakeConfig, overrides: tuple[str, ...]) -> None:
    settings = make_config(*overrides)
    spec = environment_spec(settings)
    episodes = TrainingEpisodes(spec, 0, 4)
    with WorkerPool(settings.env, spec, 1, 4, 1, episodes.following) as pool:
        pool.begin(episodes.first(range(4)))
        (pid,) = pool.process_ids
        taken = memory.private_bytes(psutil.Process(pid))
    assert taken <= 1.25 * families.get(settings.env.family).worker_cost.bytes(spec)


def test_files_that_a_process_maps_are_not_its_own_memory(tmp_path: Path) -> None:
    """Nobody else has the file mapped, so that its pages are part of the unique set."""
    size = 64_000_000
    (tmp_path / "file").write_bytes(bytes(size))
    before = memory.private_bytes(psutil.Process())
    file = np.memmap(tmp_path / "file", mode="r")
    assert int(file[::4096].sum()) == 0
    assert memory.private_bytes(psutil.Process()) - before < size / 4
    own = np.ones(size // 8)
    assert memory.private_bytes(psutil.Process()) - before > 0.75 * own.nbytes


def test_as_many_rows_as_the_memory_holds(seven_billion: TrainingSettings, process_group: None) -> None:
    settings = changed(seven_billion, "learner", micro_batch_rows="auto", batch_segments=32)
    spec, limit = environment_spec(settings), 139 * GIB
    found = memory.with_micro_batch(settings, spec, 1, CUDA, limit)
    rows = found.learner.micro_batch_rows
    assert isinstance(rows, int) and rows % settings.replay.segment_length == 0
    assert planned(found).memory.device <= 0.95 * limit
    assert planned(found).memory.micro_batch == rows == 8 * found.micro_batch_segments
    larger = changed(found, "learner", micro_batch_rows=rows + 8)
    assert rows == 32 * 8 or planned(larger).memory.device > 0.95 * limit
    small = memory.with_micro_batch(settings, spec, 1, CUDA, 30 * GIB)
    assert small.micro_batch_segments < found.micro_batch_segments
    with pytest.raises(UserError, match="micro_batch_rows=auto asks a GPU"):
        memory.with_micro_batch(settings, spec, 1, CPU, None)
    assert memory.with_micro_batch(seven_billion, spec, 1, CPU, None) is seven_billion


def test_fewer_rows_than_a_segment_are_refused() -> None:
    with pytest.raises(UserError, match="micro_batch_rows is 3, less than a segment"):
        runs.load("train", ["experiment=point_reach", "learner.micro_batch_rows=3"])
