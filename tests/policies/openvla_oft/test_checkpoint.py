"""Reading and writing folders in the published layout: same logits, and one line for whatever is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gipo_envs.errors import UserError
from gipo_vla.policies.lora import LoraSettings, adapter_parameters
from gipo_vla.policies.openvla_oft import Architecture, OpenVlaOftSettings, build, load
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.policies.openvla_oft.reading import CheckpointMismatch
from gipo_vla.policies.openvla_oft.writing import export
from tests.policies.openvla_oft.reference import action_logits

Make = Callable[..., Any]
WriteFolder = Callable[..., Path]
ALL_TOWERS = ("vision", "patch_embeddings", "projector", "language_model", "action_head")


def logits_of(policy: OpenVlaOftPolicy, io: dict[str, Tensor], case: str = "img1_prop") -> Tensor:
    names = ("input_ids", "attention_mask", "pixel_values")
    with torch.no_grad():
        return action_logits(
            policy, *(io[f"{case}.{name}"] for name in names), proprio=io.get(f"{case}.proprio")
        )


@contextmanager
def refused(*parts: str) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """What stands within ends with one line that names these."""
    with pytest.raises(UserError) as error:
        yield error
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.fixture
def fixture_settings(fixture_architecture: Architecture, published_folder: Path) -> OpenVlaOftSettings:
    return OpenVlaOftSettings(architecture=fixture_architecture, checkpoint=str(published_folder))


# ------------------------------------------------------------------------------------------------ reading


def test_build_takes_what_the_folder_says(
    fixture_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make, io: dict[str, Tensor]
) -> None:
    spec = make_spec(proprio=8)
    policy = build(fixture_settings, spec)
    assert policy.settings.proprio is True and policy.head == "tokens" and policy.settings.images == 1
    assert policy.statistics is not None and policy.statistics.key == "libero_spatial_no_noops"
    assert (logits_of(policy, io) - io["img1_prop.action_logits_last256"]).abs().max() <= 2e-5
    decision = policy.act(make_observations(spec, 2), 1.6, torch.Generator().manual_seed(0))
    actions = policy.decode(decision.tokens)
    assert actions.shape == (2, 8, 7) and set(actions[..., 6].unique().tolist()) <= {-1.0, 1.0}


def test_gripper_follows_the_published_evaluation(
    fixture_settings: OpenVlaOftSettings, make_spec: Make
) -> None:
    """The model's 1 is open, the environment's -1 is; other dimensions follow q01 and q99."""
    policy = build(fixture_settings, make_spec(proprio=8))
    tokens = torch.zeros(1, 8, 7, dtype=torch.int64)  # the largest action in every dimension
    tokens[0, 1] = 255  # the smallest
    actions = policy.decode(tokens)[0]
    assert actions[0, 6] == -1 and actions[1, 6] == 1
    torch.testing.assert_close(actions[0, 0], torch.tensor(0.93), atol=0.01, rtol=0)
    torch.testing.assert_close(actions[1, 0], torch.tensor(-0.75), atol=0.01, rtol=0)
    assert torch.equal(policy.decode(policy.encode(policy.decode(tokens))), policy.decode(tokens))
    untouched = build(dataclasses.replace(fixture_settings, gripper="none"), make_spec(proprio=8))
    assert untouched.decode(tokens)[0, 0, 6] > 0.99


def test_proprio_is_normalised_by_the_published_formula(
    fixture_settings: OpenVlaOftSettings, make_spec: Make, meta: dict[str, Any]
) -> None:
    scaling = build(fixture_settings, make_spec(proprio=8)).proprio_scaling
    assert scaling is not None
    entry = meta["norm_stats"]["libero_spatial_no_noops"]["proprio"]
    low, high = torch.tensor(entry["q01"]), torch.tensor(entry["q99"])
    torch.testing.assert_close(scaling(low[None]), -torch.ones(1, 8))
    torch.testing.assert_close(scaling(high[None]), torch.ones(1, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaling(((low + high) / 2)[None]), torch.zeros(1, 8), atol=1e-5, rtol=0)
    assert torch.equal(scaling(high[None] + 5), torch.ones(1, 8))


def test_statistics_in_config_json(
    write_folder: WriteFolder, tmp_path: Path, meta: dict[str, Any], io: dict[str, Tensor]
) -> None:
    folder = write_folder(tmp_path / "checkpoint")
    (folder / "dataset_statistics.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["norm_stats"] = meta["norm_stats"]
    (folder / "config.json").write_text(json.dumps(config))
    policy = load(folder)
    assert policy.statistics is not None and policy.statistics.action.low[0] == -0.75
    assert (logits_of(policy, io) - io["img1_prop.action_logits_last256"]).abs().max() <= 2e-5


def test_one_file_raw_timm_names_and_no_dead_tensors(
    write_folder: WriteFolder, tmp_path: Path, published_weights: dict[str, Tensor], io: dict[str, Tensor]
) -> None:
    folder = write_folder(tmp_path / "checkpoint")
    for path in folder.glob("model*"):
        path.unlink()
    dead = ("attn_pool", "featurizer.norm.", "featurizer.blocks.2.", "fused_featurizer.blocks.3.")
    weights = {
        name.replace("ls1.scale_factor", "ls1.gamma"): tensor
        for name, tensor in published_weights.items()
        if not any(part in name for part in dead) or "fused_featurizer.blocks.2." in name
    }
    # The towers' depth is read from their last block, of which a trace must stay.
    for name in (
        "vision_backbone.featurizer.blocks.2.norm1.weight",
        "vision_backbone.fused_featurizer.blocks.3.norm1.weight",
    ):
        weights[name] = published_weights[name]
    weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    save_file(weights, folder / "model.safetensors")
    assert (logits_of(load(folder), io) - io["img1_prop.action_logits_last256"]).abs().max() <= 2e-5


class Original(nn.Module):
    """Modules under their published names, enough for peft to put an adapter on them."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            if name.endswith(".weight") and weight.dim() in (2, 4) and "embed_tokens" not in name:
                self._place(name.removesuffix(".weight"), weight)

    def _place(self, name: str, weight: Tensor) -> None:
        *parents, leaf = name.split(".")
        module: nn.Module = self
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        layer = (
            nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False)
            if weight.dim() == 4
            else nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        )
        layer.weight.data = weight
        module.add_module(leaf, layer)


@pytest.fixture(scope="module")
def adapted(published_weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], LoraConfig]:
    """A published adapter on every linear and convolution, made by peft on the original's modules, and the
    weights that peft itself merges it to."""
    original = Original(published_weights)
    targets = [
        name for name, module in original.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets)
    torch.manual_seed(3)
    inject_adapter_in_model(config, original)
    for parameter in adapter_parameters(original):
        parameter.data.normal_(std=0.1)
    state = get_peft_model_state_dict(original)
    merged = dict(published_weights)
    for name in targets:
        layer = original.get_submodule(name)
        weight = layer.base_layer.weight + layer.get_delta_weight("default")  # type: ignore[union-attr,operator]
        merged[f"{name}.weight"] = weight.detach()
    return {f"base_model.model.{name}": value for name, value in state.items()}, merged, config


def write_adapter_folder(
    folder: Path, state: dict[str, Tensor], config: LoraConfig, base: str | None
) -> Path:
    adapter = folder / "lora_adapter"
    adapter.mkdir(parents=True)
    config.base_model_name_or_path = base
    config.save_pretrained(str(adapter))
    save_file(
        {name: value.contiguous() for name, value in state.items()}, adapter / "adapter_model.safetensors"
    )
    return folder


def test_unmerged_adapter_equals_what_peft_merges(
    adapted: tuple[dict[str, Tensor], dict[str, Tensor], LoraConfig],
    write_folder: WriteFolder,
    published_folder: Path,
    tmp_path: Path,
    io: dict[str, Tensor],
) -> None:
    state, merged, config = adapted
    expected = logits_of(
        load(write_folder(tmp_path / "merged", proprio=False, weights=merged)), io, "img1_noprop"
    )
    folder = write_adapter_folder(tmp_path / "unmerged", state, config, str(published_folder))
    policy = load(folder)
    assert (logits_of(policy, io, "img1_noprop") - expected).abs().max() <= 2e-5
    assert (expected - io["img1_noprop.action_logits_last256"]).abs().max() > 0.1
    named = load(folder / "lora_adapter", base=published_folder)
    assert torch.equal(logits_of(named, io, "img1_noprop"), logits_of(policy, io, "img1_noprop"))


def test_adapter_beside_merged_weights_is_not_merged_again(
    adapted: tuple[dict[str, Tensor], dict[str, Tensor], LoraConfig],
    write_folder: WriteFolder,
    tmp_path: Path,
    io: dict[str, Tensor],
) -> None:
    state, _, config = adapted
    folder = write_adapter_folder(write_folder(tmp_path / "checkpoint"), state, config, None)
    assert (logits_of(load(folder), io) - io["img1_prop.action_logits_last256"]).abs().max() <= 2e-5


def test_continuous_head_evaluates_but_does_not_train(
    l1_folder: Path, fixture_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make
) -> None:
    spec = make_spec(proprio=8)
    settings = dataclasses.replace(fixture_settings, checkpoint=str(l1_folder))
    policy = build(settings, spec)
    assert policy.head == "l1"
    observations = make_observations(spec, 2)
    assert policy.l1_head is not None
    exact = policy.action_scaling.to_environment(policy.l1_head(policy.states(observations)).float())
    rounded = policy.decode(policy.act(observations, 1.0, greedy=True).tokens)
    clipped = policy.action_scaling.to_environment(
        policy.action_scaling.normalized(policy.encode(exact))  # the tokens' range ends at 0.996
    )
    assert exact.shape == (2, 8, 7)
    torch.testing.assert_close(rounded, clipped)
    for refuse in (policy.settings.require_tokens, lambda: policy.act(observations, 1.0)):
        with refused("L1 head", "gipo_vla.sft"):
            refuse()
    with refused("action_head--150000_checkpoint.pt", "gipo_vla.sft"):
        build(dataclasses.replace(settings, head="tokens"), spec)
    assert build(settings, spec, cloning=True).head == "tokens"


# ------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize(
    "changes",
    [
        {"training": "full"},
        {"training": "lora", "lora": LoraSettings(rank=4, alpha=6.0)},
        {"training": "lora", "lora": LoraSettings(rank=3, alpha=6.0, towers=ALL_TOWERS)},
    ],
    ids=["full", "lora", "lora-all"],
)
def test_export_reads_back_to_the_same_logits(
    fixture_settings: OpenVlaOftSettings,
    make_spec: Make,
    make_observations: Make,
    published_folder: Path,
    published_weights: dict[str, Tensor],
    tmp_path: Path,
    io: dict[str, Tensor],
    changes: dict[str, Any],
) -> None:
    spec = make_spec(proprio=8)
    torch.manual_seed(0)
    policy = build(dataclasses.replace(fixture_settings, **changes), spec)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    expected = logits_of(policy, io)
    assert (expected - io["img1_prop.action_logits_last256"]).abs().max() > 0.01
    summary = export(policy, tmp_path / "export", shard_bytes=3_000_000)
    assert torch.equal(logits_of(policy, io), expected), "exporting must not touch the policy"
    assert summary.shards > 2

    written: dict[str, Tensor] = {}
    for path in sorted((tmp_path / "export").glob("model-*.safetensors")):
        written |= load_file(path)
    shapes = {name: tensor.shape for name, tensor in published_weights.items()}
    assert {name: tensor.shape for name, tensor in written.items()} == shapes
    index = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(written)
    # What never runs and the rows of words come from the checkpoint that the policy started from.
    dead = "vision_backbone.fused_featurizer.attn_pool.kv.weight"
    assert torch.equal(written[dead], published_weights[dead])
    head = "language_model.lm_head.weight"
    assert torch.equal(written[head][:31744], published_weights[head][:31744])
    assert torch.equal(written[head][32000:], published_weights[head][32000:])

    merged = load(tmp_path / "export")
    assert (logits_of(merged, io) - expected).abs().max() <= 2e-5
    assert merged.statistics == policy.statistics
    if policy.settings.training == "lora":
        adapter = load(tmp_path / "export" / "lora_adapter", base=published_folder)
        assert (logits_of(adapter, io) - expected).abs().max() <= 2e-5
    else:
        assert summary.adapter is None

    # And as the start of the next run: the same actions, values and proprioception.
    observations = make_observations(spec, 3)
    settings = dataclasses.replace(fixture_settings, checkpoint=str(tmp_path / "export"), training="full")
    again = build(settings, spec)
    decision = policy.act(observations, 1.0, greedy=True)
    same = again.act(observations, 1.0, greedy=True)
    assert torch.equal(decision.tokens, same.tokens)
    torch.testing.assert_close(decision.values, same.values, atol=1e-4, rtol=1e-4)
    assert torch.equal(policy.decode(decision.tokens), again.decode(same.tokens))


def test_exported_adapter_fits_the_original_modules(
    fixture_settings: OpenVlaOftSettings,
    make_spec: Make,
    published_weights: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    """peft itself puts the adapter on the original's modules and merges to what the export merged."""
    torch.manual_seed(0)
    lora = LoraSettings(rank=3, alpha=6.0, towers=ALL_TOWERS)
    policy = build(dataclasses.replace(fixture_settings, lora=lora), make_spec(proprio=8))
    with torch.no_grad():
        for parameter in adapter_parameters(policy.network):
            parameter.normal_(std=0.1)
    folder = export(policy, tmp_path / "export").folder
    config = LoraConfig.from_pretrained(str(folder / "lora_adapter"))
    original = Original(published_weights)
    inject_adapter_in_model(config, original)
    state = load_file(folder / "lora_adapter" / "adapter_model.safetensors")
    for name, value in state.items():
        parameter = original.get_parameter(
            name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
        )
        assert parameter.shape == value.shape, name
        parameter.data = value
    written: dict[str, Tensor] = {}
    for path in folder.glob("model-*.safetensors"):
        written |= load_file(path)
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in state}
    assert len(modules) > 30
    for name in modules:
        layer = original.get_submodule(name)
        merged = layer.base_layer.weight + layer.get_delta_weight("default")  # type: ignore[union-attr,operator]
        torch.testing.assert_close(written[f"{name}.weight"], merged.detach(), atol=1e-5, rtol=0)


def test_export_from_nothing_never_prefers_a_word(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make, tmp_path: Path
) -> None:
    """Without a checkpoint behind it, the original's argmax over the whole vocabulary still is an action."""
    spec = make_spec(proprio=4, action_size=4)
    torch.manual_seed(0)
    settings = dataclasses.replace(
        tiny_settings,
        proprio=True,
        training="full",
        action_queries="learned",
        architecture=tiny_settings.architecture,
    )
    statistics = {
        "own": {
            "action": {"q01": [-0.5] * 4, "q99": [0.5] * 4, "mask": [True] * 4},
            "proprio": {"q01": [-1.0] * 4, "q99": [1.0] * 4},
        }
    }
    policy = build(settings, spec, statistics=statistics)
    folder = export(policy, tmp_path / "export").folder
    head = load_file(folder / "model-00001-of-00001.safetensors")["language_model.lm_head.weight"]
    observations = make_observations(spec, 4)
    with torch.no_grad():
        logits = policy.states(observations) @ head.T
    first = settings.architecture.first_action_id
    assert logits.argmax(-1).min() >= first and logits.argmax(-1).max() < first + 256
    again = build(dataclasses.replace(settings, random_weights=False, checkpoint=str(folder)), spec)
    assert again.statistics == policy.statistics and again.statistics is not None
    theirs, ours = again.act(observations, 1.0, greedy=True), policy.act(observations, 1.0, greedy=True)
    assert torch.equal(theirs.tokens, ours.tokens)
    torch.testing.assert_close(theirs.values, ours.values)


# ------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def broken(published_folder: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(published_folder, tmp_path / "broken"))


def test_hugging_face_ids(
    monkeypatch: pytest.MonkeyPatch, published_folder: Path, io: dict[str, Tensor]
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(published_folder))
    assert (logits_of(load("someone/model"), io) - io["img1_prop.action_logits_last256"]).abs().max() <= 2e-5

    def fail(name: str, **_: Any) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with refused("'someone/model'", "no route to host"):
        load("someone/model")


def test_truncated_shard(broken: Path) -> None:
    shard = broken / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with refused("model-00002-of-00002.safetensors", "truncated", "download"):
        load(broken)


def test_missing_shard_index_and_folder(broken: Path, tmp_path: Path) -> None:
    (broken / "model-00002-of-00002.safetensors").unlink()
    with refused("model-00002-of-00002.safetensors is missing"):
        load(broken)
    for path in broken.glob("model*"):
        path.unlink()
    with refused("no model.safetensors.index.json", "config.json"):
        load(broken)
    with refused("nowhere", "there is no such folder"):
        load(tmp_path / "nowhere")


def test_tensors_that_do_not_fit_are_all_reported(
    write_folder: WriteFolder, tmp_path: Path, published_weights: dict[str, Tensor]
) -> None:
    weights = dict(published_weights)
    layer = "language_model.model.layers.1"
    del weights[f"{layer}.mlp.up_proj.weight"]
    weights["projector.fc4.weight"] = torch.zeros(2, 2)
    weights["vision_backbone.featurizer.norm.weight"] = torch.zeros(5)
    weights["vision_backbone.featurizer.blocks.1.attn.qkv.bias"] = torch.zeros(5)
    with refused("1 missing", "1 unknown", "2 of another shape", "projector.fc4.weight") as error:
        load(write_folder(tmp_path / "checkpoint", weights=weights))
    assert isinstance(error.value, CheckpointMismatch)
    report = error.value.report
    assert report.missing == (f"{layer}.mlp.up_proj.weight",)
    assert report.unexpected == ("projector.fc4.weight",)
    assert len(report.misshapen) == 2 and len(report.table().splitlines()) == 4


@pytest.mark.parametrize(
    ("changes", "spec_changes", "parts"),
    [
        ({"unnorm_key": "libero_goal"}, {}, ("libero_goal", "libero_spatial_no_noops")),
        ({"images": 2}, {}, ("2 image(s)", "environment gives 1")),
        ({"proprio": False}, {}, ("policy.proprio is false", "proprio_projector--150000")),
        ({"head": "l1"}, {}, ("policy.head is l1", "set policy.head to tokens")),
        (
            {"architecture": Architecture(image_size=56)},
            {},
            ("another size", "dino.width 32 instead of 1024"),
        ),
        ({}, {"proprio": None}, ("reads proprio", "env.observations")),
        ({}, {"proprio": 4}, ("8 proprio values", "gives 4")),
        ({}, {"action_size": 4}, ("7 action dimensions", "has 4")),
        ({}, {"image_size": 64}, ("64x64", "56x56", "env.camera")),
        ({"base_checkpoint": "x/y"}, {}, ("already holds merged weights",)),
        ({"checkpoint": None}, {}, ("policy.checkpoint is null", "policy.random_weights=true")),
    ],
)
def test_what_does_not_go_together_is_one_line(
    fixture_settings: OpenVlaOftSettings,
    make_spec: Make,
    changes: dict[str, Any],
    spec_changes: dict[str, Any],
    parts: tuple[str, ...],
) -> None:
    spec = make_spec(**({"proprio": 8} | spec_changes))
    with refused(*parts):
        build(dataclasses.replace(fixture_settings, **changes), spec)


def test_key_without_the_no_noops_suffix(fixture_settings: OpenVlaOftSettings, make_spec: Make) -> None:
    settings = dataclasses.replace(fixture_settings, unnorm_key="libero_spatial")
    statistics = build(settings, make_spec(proprio=8)).statistics
    assert statistics is not None and statistics.key == "libero_spatial_no_noops"


def test_several_data_sets_need_a_key(
    broken: Path, fixture_settings: OpenVlaOftSettings, make_spec: Make
) -> None:
    path = broken / "dataset_statistics.json"
    entries = json.loads(path.read_text())
    entries["libero_goal_no_noops"] = entries["libero_spatial_no_noops"]
    path.write_text(json.dumps(entries))
    settings = dataclasses.replace(fixture_settings, checkpoint=str(broken))
    with refused("policy.unnorm_key", "libero_goal_no_noops, libero_spatial_no_noops"):
        build(settings, make_spec(proprio=8))
    path.write_text("{}")
    with refused("dataset_statistics.json", "un-normalised"):
        build(settings, make_spec(proprio=8))


def test_exports_record_images_and_refuse_another_count(
    fixture_settings: OpenVlaOftSettings, make_spec: Make, tmp_path: Path
) -> None:
    policy = build(fixture_settings, make_spec(cameras=2, proprio=8))
    folder = export(policy, tmp_path / "export").folder
    settings = dataclasses.replace(fixture_settings, checkpoint=str(folder))
    assert build(settings, make_spec(cameras=2, proprio=8)).settings.images == 2
    with refused("looks at 2 image(s)", "gives 1"):
        build(settings, make_spec(cameras=1, proprio=8))
    with refused("policy.images is 1", "trained with 2"):
        build(dataclasses.replace(settings, images=1), make_spec(cameras=1, proprio=8))
    with refused("not empty"):
        export(policy, folder)


def test_damaged_small_files(broken: Path) -> None:
    projector = broken / "proprio_projector--150000_checkpoint.pt"
    whole = projector.read_bytes()
    projector.write_bytes(whole[:5000])
    with refused(projector.name, "truncated"):
        load(broken)
    projector.write_bytes(whole)
    (broken / "tokenizer.json").unlink()
    with refused("tokenizer.json"):
        load(broken).set_instructions(["open the drawer"])
    (broken / "config.json").write_text("{")
    with refused("config.json", "JSON"):
        load(broken)


def test_adapter_that_does_not_fit(
    adapted: tuple[dict[str, Tensor], dict[str, Tensor], LoraConfig], tmp_path: Path, published_folder: Path
) -> None:
    state, _, config = adapted
    folder = write_adapter_folder(tmp_path / "no-base", state, config, None)
    with refused("policy.base_checkpoint"):
        load(folder)
    name = "base_model.model.projector.fc1.lora_A.weight"
    other = {**state, name: state[name][:, :-1]}
    folder = write_adapter_folder(tmp_path / "misfit", other, config, str(published_folder))
    with refused("projector.fc1", "policy.base_checkpoint"):
        load(folder)
