"""The random generators that a layer may draw from: NumPy's and Python's own, and those that it keeps."""

import random
import sys
from contextlib import contextmanager
from typing import Any, Iterator, List

import numpy as np

KINDS = (np.random.RandomState, np.random.Generator, random.Random)


def kept_by(layer: Any) -> List[Any]:
    """The generators in a layer, its classes and the modules of these; none where there is no layer."""
    foreign = ("builtins", "Boost", "caffe")
    classes = [kind for kind in type(layer).__mro__ if kind.__module__.split(".")[0] not in foreign]
    modules = [sys.modules[kind.__module__] for kind in classes if kind.__module__ in sys.modules]
    found = [value for owner in (layer, *classes, *modules) for value in getattr(owner, "__dict__", {}).values()]
    return list({id(value): value for value in found if isinstance(value, KINDS)}.values())


def seed_all(layer: Any, seed: int) -> None:
    """Seed every generator that a forward of `layer` may draw from."""
    np.random.seed(seed)
    random.seed(seed)
    for generator in kept_by(layer):
        if isinstance(generator, np.random.Generator):
            kind: Any = type(generator.bit_generator)
            generator.bit_generator.state = kind(seed).state
        else:
            generator.seed(seed)


def state_of_all(layer: Any) -> str:
    """Something that differs as soon as one of them has been drawn from."""
    states: List[Any] = [plain(np.random.get_state()), random.getstate()]
    for generator in kept_by(layer):
        if isinstance(generator, np.random.Generator):
            states.append(str(generator.bit_generator.state))
        else:
            is_python = isinstance(generator, random.Random)
            states.append(generator.getstate() if is_python else plain(generator.get_state()))
    return repr(states)


def plain(state) -> Any:
    """A state of NumPy's, its array as bytes."""
    return [part.tobytes() if isinstance(part, np.ndarray) else part for part in state]


@contextmanager
def kept() -> Iterator[None]:
    """Put NumPy's and Python's own generators back afterwards."""
    saved = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(saved[0])
        random.setstate(saved[1])
