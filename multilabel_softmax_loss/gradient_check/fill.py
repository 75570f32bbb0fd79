"""What to put into the blobs of Input layers, which otherwise hold zeros."""

import numpy as np

KINDS = "gaussian, uniform, multihot, index:C or a .npy file"


def fill_inputs(net, inputs, fill, random) -> None:
    """Fill the blobs `inputs` of a net as `fill` says, a kind by blob; a ValueError unless it names just these."""
    for blob in fill:
        if blob not in inputs:
            raise ValueError(f"--fill names {blob!r}; the net's Input blobs are {', '.join(inputs) or 'none'}.")
    empty = [blob for blob in inputs if blob not in fill]
    if empty:
        raise ValueError(f"nothing feeds the Input blob {empty[0]!r}; add --fill {empty[0]}=KIND with {KINDS}.")
    for blob, kind in fill.items():
        net.blobs[blob].data[...] = made(kind, tuple(net.blobs[blob].data.shape), random, blob)


def made(kind, shape, random, blob) -> np.ndarray:
    """Data of a kind: see `check_net`. multihot has one label at least along axis 1."""
    if kind == "gaussian":
        return random.randn(*shape)
    if kind == "uniform":
        return random.uniform(0, 1, shape)
    if kind == "multihot":
        if len(shape) < 2:
            raise ValueError(f"--fill {blob}=multihot needs an axis of classes; {blob!r} has shape {shape}.")
        labels = (random.uniform(0, 1, shape) < 0.2).astype(np.float32)
        np.put_along_axis(labels, random.randint(shape[1], size=(shape[0], 1) + shape[2:]), 1.0, axis=1)
        return labels
    if kind.startswith("index:") and kind[6:].isdigit() and int(kind[6:]) > 0:
        return random.randint(int(kind[6:]), size=shape)
    if kind.endswith(".npy"):
        try:
            array = np.load(kind, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"--fill {blob}={kind}: {error}") from error
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            found = getattr(array, "dtype", "several arrays")
            raise ValueError(f"--fill {blob}={kind}: the file holds {found}; expected an array of real numbers.")
        if array.shape != shape:
            raise ValueError(f"{kind} has shape {array.shape}; expected {shape}, that of {blob!r} in the net.")
        return array
    raise ValueError(f"--fill {blob}={kind}; expected {KINDS}.")
