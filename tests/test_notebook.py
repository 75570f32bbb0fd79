"""The notebook prints what it shows, by the code that is here."""

from pathlib import Path

import pytest

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart.ipynb"


def shown(cell):
    """What a code cell prints, and the kinds of pictures below it."""
    text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    return text, ["image/png" in output.data for output in cell.outputs if output.output_type == "display_data"]


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
def test_the_notebook_shows_what_it_computes(monkeypatch):
    monkeypatch.setenv(
        "MPLBACKEND", "module://matplotlib_inline.backend_inline"
    )  # the kernel's own, which shows pictures
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    import nbformat
    from nbclient import NotebookClient

    kept = nbformat.read(str(QUICKSTART), as_version=4)
    nbformat.validate(kept)
    run = nbformat.read(str(QUICKSTART), as_version=4)
    NotebookClient(run, kernel_name="python3", timeout=120).execute()
    cells = [(old, new) for old, new in zip(kept.cells, run.cells) if old.cell_type == "code"]
    assert [shown(old) for old, _ in cells] == [shown(new) for _, new in cells]
    assert sum(len(shown(old)[1]) for old, _ in cells) == 1
    assert [old.execution_count for old, _ in cells] == list(range(1, len(cells) + 1))
