"""The commands of `python -m multilabel_softmax_loss`, one file each, and what only commands need."""
