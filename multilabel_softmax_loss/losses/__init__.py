"""The losses: labels become targets, targets and scores become loss and gradient. NumPy only."""
