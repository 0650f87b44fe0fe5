"""Modules in a process of their own are this package's, whatever the current folder holds."""

import subprocess

from mmray.system.processes import of_module


def test_nothing_is_imported_from_the_current_folder(tmp_path):
    (tmp_path / "mmray").mkdir()
    for name in ("json.py", "numpy.py", "mmray/__init__.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the current folder')")
    words = {**of_module("mmray.pipeline.database"), "cwd": tmp_path}
    words["args"] = [*words["args"], "/runs"]
    done = subprocess.run(**words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "sqlite:////runs/mlflow.db\n"
