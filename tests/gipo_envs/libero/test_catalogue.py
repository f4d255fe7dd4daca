"""Task lists, instructions and initial states are hf-libero's, read without running its code."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gipo_envs import UserError
from gipo_envs.libero import catalogue, installation

pytestmark = pytest.mark.usefixtures("libero_installed")


def test_suites() -> None:
    sizes = {suite: len(catalogue.tasks(suite)) for suite in catalogue.STEP_LIMITS}
    assert sizes == {
        "libero_spatial": 10,
        "libero_object": 10,
        "libero_goal": 10,
        "libero_10": 10,
        "libero_90": 90,
    }
    for suite in catalogue.STEP_LIMITS:
        for task in catalogue.tasks(suite):
            assert task.definition.is_file()
        states = [catalogue.published_states(task) for task in catalogue.tasks(suite)]
        assert {len(own) for own in states} == {50}
        assert max(own.shape[1] for own in states) == catalogue.STATE_SIZES[suite]


@pytest.mark.medium
def test_against_hf_libero(tmp_path: Path) -> None:
    """Its own reader, which imports torch and allows pickles everything, sees the same."""
    program = """
import contextlib, json, sys
import numpy as np
with contextlib.redirect_stdout(sys.stderr):
    from libero.libero import benchmark
    result = {}
    for suite, make in benchmark.get_benchmark_dict().items():
        if suite == "libero_100":
            continue
        tasks = make()
        result[suite] = [(task.name, task.language) for task in tasks.tasks]
        for index, task in enumerate(tasks.tasks):
            np.save(f"{sys.argv[1]}/{suite}-{task.name}.npy", tasks.get_task_init_states(index))
print(json.dumps(result))
"""
    environment = {"LIBERO_CONFIG_PATH": str(installation._config_folder()), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    for suite, listed in json.loads(result.stdout).items():
        tasks = catalogue.tasks(suite)
        assert [(task.name, task.instruction) for task in tasks] == [tuple(entry) for entry in listed]
        for task in tasks:
            states = np.load(tmp_path / f"{suite}-{task.name}.npy")
            np.testing.assert_array_equal(catalogue.published_states(task), states)


def test_instructions() -> None:
    assert catalogue.instruction("put_the_bowl_on_the_stove") == "put the bowl on the stove"
    assert catalogue.instruction("KITCHEN_SCENE10_close_the_top_drawer") == "close the top drawer"
    assert catalogue.instruction("LIVING_ROOM_SCENE2_put_both_cans_away") == "put both cans away"


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return print, ("executed",)


@pytest.mark.parametrize("content", [_Harmful(), np.zeros(2), None], ids=["code", "shape", "garbage"])
def test_files_that_are_not_states(
    tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "task.pruned_init"
    if content is None:
        path.write_bytes(b"no archive")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=r"task\.pruned_init"):
        catalogue._read_states(path)
    assert "executed" not in capsys.readouterr().out


def test_arrays_are_read(tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(size=(50, 7))
    path = tmp_path / "task.pruned_init"
    with zipfile.ZipFile(path, "w") as archive, io.BytesIO() as buffer:
        # As numpy 1 wrote it.
        data = pickle.dumps(states, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        buffer.write(data)
        archive.writestr("archive/data.pkl", buffer.getvalue())
    np.testing.assert_array_equal(catalogue._read_states(path), states)


def test_reading_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for task in catalogue.tasks.__wrapped__("libero_goal"):
        assert len(catalogue.published_states.__wrapped__(task)) == 50
    assert not list(tmp_path.iterdir())
