"""The example for one's own images, run as a reader would run it, on few of them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import caffe  # noqa: F401  as the commands need it

TAGS = Path(__file__).resolve().parent.parent.parent / "examples" / "tags"


def test_the_script_goes_the_whole_way(tmp_path):
    process = subprocess.run(
        ["bash", str(TAGS / "run.sh"), str(tmp_path / "output"), "60"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    output = tmp_path / "output"
    report = json.loads((output / "tags" / "report.json").read_text())
    reasons = {Path(path).stem[-3:]: reason for bad in report["bad_images"].values() for path, reason in bad.items()}
    assert {number: reason.split(":")[0] for number, reason in reasons.items()} == {
        "003": "cut",
        "005": "corrupted",
        "007": "missing",
    }
    for name in ("tags/run/best.caffemodel", "tags/deploy.prototxt", "checked/run/preprocessing.json"):
        assert (output / name).is_file()
    written = (TAGS / "README.md").read_text()
    for line in (TAGS / "run.sh").read_text().splitlines():
        if line.startswith("step convert"):
            assert line.split("step ")[1].split(" --max-bad")[0] in written
    assert "Traceback" not in process.stdout + process.stderr


def test_the_page_shows_what_a_dry_run_prints(tmp_path):
    subprocess.run([sys.executable, str(TAGS / "make_source.py"), str(tmp_path)], check=True)
    page = (TAGS / "README.md").read_text(encoding="utf-8")
    command, shown = re.search(r"^    python (.* --dry-run)\n\n```\n(.*?)^```$", page, re.M | re.S).groups()
    process = subprocess.run([sys.executable, *command.split()], cwd=str(tmp_path), capture_output=True, text=True)
    assert process.stdout == shown, process.stderr
