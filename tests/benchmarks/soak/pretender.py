"""Behaves as a training run does towards whoever kills it, in milliseconds: ``pretender.py run_dir=DIR
[doubles]``. With ``doubles`` it writes a line again when it resumes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are read, too

from gipo_vla.checkpoint import folder as folders  # noqa: E402

ITERATIONS = 40


def main() -> None:
    os.umask(0o022)
    run = next(Path(word.partition("=")[2]) for word in sys.argv if word.startswith("run_dir="))
    checkpoints, metrics = run / "checkpoints", run / "metrics.jsonl"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").touch()
    done = 0
    if names := folders.names(checkpoints):
        chosen, damaged = folders.newest_valid(checkpoints)
        for line in damaged:
            print(f"warning: passed over a damaged checkpoint: {line}", file=sys.stderr)
        folders.set_aside_newer(checkpoints, chosen.name)
        print(f"resuming from {chosen}", file=sys.stderr, flush=True)
        done = int(chosen.name.split("-")[0])
    lines = metrics.read_text().splitlines(keepends=True)[:done] if metrics.exists() else []
    if names and "doubles" in sys.argv:
        lines.append(lines[-1])
    metrics.write_text("".join(lines))
    while done < ITERATIONS:
        done += 1
        with metrics.open("a") as file:
            file.write(json.dumps({"iteration": done, "env_steps": 0, "rollout/worker_faults": 0}) + "\n")
        name = folders.new_name(checkpoints, done, done)
        part = folders.prepare(checkpoints, name)
        (part / "state.json").write_text(json.dumps({"done": done}))
        time.sleep(0.01)  # so long a save lasts
        folders.seal(checkpoints, name, {"state.json": folders.record(part / "state.json")})
        folders.prune(checkpoints, 3)
    (run / "evaluation.json").write_text('{"success_once": 0.5, "episodes": 4}')
    (run / "finished.json").write_text("{}")


if __name__ == "__main__":
    main()
