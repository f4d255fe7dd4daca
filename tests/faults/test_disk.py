"""Disks that are full, and checkpoints that they damaged."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gipo_vla.checkpoint import folder as folders
from gipo_vla.train import resolve, train

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
IN_A_SMALL_DISK = """
# The disk exists in a namespace of its own and goes with it; what is asserted on is copied out.
mount=$1 outside=$2; shift 2
mount -t tmpfs -o size=80m,mode=755 tmpfs "$mount" || exit 77
full_for_a_while() {
    until [ -e "$mount/run/checkpoints/latest" ]; do sleep 0.05; done
    dd if=/dev/zero "of=$mount/filler" bs=64k 2>/dev/null
    until grep -q 'no checkpoint could be written' "$outside/log" &&
        grep -q 'lines wait in memory' "$outside/log"; do sleep 0.05; done
    cp "$mount/run/checkpoints/latest" "$outside/latest-while-full"
    rm "$mount/filler"
}
full_for_a_while &
"$@" >"$outside/log" 2>&1
status=$?
kill $! 2>/dev/null
cp -r "$mount/run" "$outside/run"
exit $status
"""


def may_mount() -> bool:
    """Whether this machine lets its users mount a file system for themselves."""
    if shutil.which("unshare") is None:
        return False
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.medium
@pytest.mark.skipif(not may_mount(), reason="may not mount a small disk")
def test_a_full_disk_costs_checkpoints_but_no_metrics_and_not_the_run(
    launch: Callable[..., Any], tmp_path: Path
) -> None:
    mount, outside = tmp_path / "mount", tmp_path / "outside"
    mount.mkdir()
    outside.mkdir()
    script = tmp_path / "in_a_small_disk.sh"
    script.write_text(IN_A_SMALL_DISK)
    run = launch(
        "iterations=80",
        "checkpoint.every_iterations=1",
        "telemetry.log_every=1000",
        folder=mount / "run",
        prefix=(*NAMESPACE, "bash", str(script), str(mount), str(outside)),
    )
    run.wait(None)
    text = (outside / "log").read_text()
    assert run.process.returncode == 0, text[-4000:]
    assert "No space left on device" in text and "the last good one stays and the run continues" in text
    assert text.count("lines wait in memory") <= 3, "said once a file, not once a line"
    assert (outside / "latest-while-full").read_text().strip()
    copied = outside / "run"
    rows = (copied / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 80 and rows[-1].startswith('{"iteration": 80,')
    assert (copied / "finished.json").exists()
    chosen, damaged = folders.newest_valid(copied / "checkpoints")
    assert chosen.name.startswith("000080-") and not damaged


@pytest.fixture
def stopped_run(tmp_path: Path, tiny_overrides: tuple[str, ...]) -> Path:
    """A run of three iterations with a checkpoint of each, stopped before its end."""
    folder = tmp_path / "run"
    settings = ("iterations=5", "checkpoint.every_iterations=1", "checkpoint.keep=3", "stop_after=3")
    train(resolve([*tiny_overrides, *settings, f"run_dir={folder}"]))
    return folder


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    stopped_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    intact = tmp_path / "intact"
    shutil.copytree(stopped_run, intact)
    damaged = stopped_run / "checkpoints/000003-0000006"
    file = damaged / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    capsys.readouterr()

    train(resolve([f"resume={stopped_run}"]))
    said = capsys.readouterr().err
    assert f"passed over a damaged checkpoint: {file}" in said.replace("\n", "")
    assert "resuming from" in said and "000002-0000004" in said
    train(resolve([f"resume={intact}"]))
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (stopped_run / name).read_bytes() == (intact / name).read_bytes(), name
    # The damaged one is gone, and its name was free for the state that was reached again.
    assert [path.name for path in sorted((stopped_run / "checkpoints").iterdir())] == [
        "000003-0000006",
        "000004-0000008",
        "000005-0000010",
        "latest",
    ]
    for name in folders.names(stopped_run / "checkpoints"):
        assert folders.damage(stopped_run / "checkpoints" / name) is None


def test_every_file_cut_short_or_flipped_is_found(stopped_run: Path) -> None:
    checkpoints = stopped_run / "checkpoints"
    newest, before = (checkpoints / name for name in folders.names(checkpoints)[:2])
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert len(files) > 20
    for file in files:
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 3] ^= 0x10
        for damaged in (content[: len(content) // 2], bytes(flipped), None):
            if damaged is None:
                file.unlink()
            else:
                file.write_bytes(damaged)
            chosen, problems = folders.newest_valid(checkpoints)
            assert chosen == before and len(problems) == 1, file
            assert newest.name in problems[0]
        file.write_bytes(content)
    assert folders.newest_valid(checkpoints) == (newest, [])
