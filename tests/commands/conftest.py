import pytest


@pytest.fixture
def no_pictures(monkeypatch):
    """Curves take most of the time of a short run."""
    monkeypatch.setattr("multilabel_softmax_loss.commands.curves.draw_curves", lambda *arguments: None)
