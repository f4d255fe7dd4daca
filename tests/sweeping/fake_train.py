"""Stands in for ``gipo_vla.train`` where only the sweep is of interest: ``fake_train.py FOLDER DIGEST MODE``.

Modes: ``quick`` finishes at once, ``fail`` raises, ``forever`` runs until SIGTERM, saves and leaves, ``deaf``
runs on whatever it is sent, ``vanish`` kills itself, ``pair`` finishes once two jobs have come to run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

folder, digest, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]


def leave(*_: object) -> None:
    (folder / "saved").touch()
    sys.exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "deaf" else leave)
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("the fake says", mode, os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
(folder / "running").touch()
if mode == "fail":
    raise RuntimeError("the fake had to fail")
if mode == "vanish":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "deaf":  # with a child, as a run has simulators
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "child").write_text(str(child.pid))
while mode in ("forever", "deaf"):
    time.sleep(0.02)
while mode == "pair" and len(list(folder.parent.glob("*/running"))) < 2:
    time.sleep(0.02)
(folder / "metrics.jsonl").write_text(json.dumps({"iteration": 1, "env_steps": 100}) + "\n")
(folder / "evaluation.json").write_text(json.dumps({"mode": "greedy", "success_once": 0.75}))
finished = {"iterations": 1, "env_steps": 100, "session_seconds": 50.0, "config_digest": digest}
(folder / "finished.json").write_text(json.dumps(finished))
