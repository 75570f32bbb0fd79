"""What the READMEs say: Python that prints what is shown, commands and links that exist, the layer of the snippet."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from multilabel_softmax_loss.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "prototxt" / "README.md", *(ROOT / "examples").glob("*/README.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text, language=""):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 180


def test_the_python_of_the_readme_prints_what_it_says():
    code, printed = re.search(r"^```python\n(.*?)^```\n\n```\n(.*?)^```$", README, re.M | re.S).groups()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode() == printed


def test_the_layer_to_paste_is_the_snippet():
    (pasted,) = (block for block in blocks(README) if block.startswith("layer {"))
    assert (ROOT / "prototxt" / "softmax_loss.prototxt").read_text(encoding="utf-8").endswith(f"\n\n{pasted}")


def test_the_readme_has_every_command():
    assert sorted(re.findall(r"^\| `([a-z-]+)[ `]", README, re.M)) == sorted(COMMANDS)


def test_the_guide_of_the_checker_names_every_finding():
    sources = (ROOT / "multilabel_softmax_loss" / "gradient_check").glob("*.py")
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    names = set(re.findall(r'Finding\(\s*"([a-z-]+)"', code))
    guide = (ROOT / "examples" / "gradient_check" / "README.md").read_text(encoding="utf-8")
    assert len(names) > 10
    assert [name for name in sorted(names) if f"`{name}`" not in guide] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads], link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name)
def test_commands_and_files_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"^(?:    )?make ([a-z-]+)", text, re.M)) <= set(targets)
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= set(targets)
    assert set(re.findall(r"-m multilabel_softmax_loss ([a-z-]+)", text)) <= set(COMMANDS)
    scripts = re.findall(r"python ((?:examples|tests)/\S+\.py)", text)
    assert [script for script in scripts if not (ROOT / script).exists()] == []
