"""What to expect of 2 to 64 nodes, on paper: prints the table of the README, with its assumptions.

    python examples/distributed/arithmetic.py

Nothing here is measured. An Allreduce of S bytes among K nodes sends and receives 2 (K - 1) / K S bytes per node, in at
least 2 log2 K steps (Rabenseifner's algorithm); it begins when the gradients are there, and the copies into and out of
the message are made before and after.
"""

import math

FLOPS = 600e9  # of one node in training: 32 cores, a good BLAS
LINE_RATE = 0.8  # of the network, reached by large messages
HOP = 30e-6  # seconds for a step to begin
COPY = 5e9  # bytes per second into the message and out of it
NETWORKS = (10, 25, 100)  # Gbit/s
NODES = (2, 4, 8, 16, 32, 64)

# Parameters; multiplications and additions of forward and backward per image; images per node and iteration.
NETS = {
    "AlexNet, 64 per node": (61.0e6, 3 * 2 * 0.717e9, 64),
    "ResNet-50, 32 per node": (25.6e6, 3 * 2 * 4.1e9, 32),
    "digits, 32 per node": (24_202, 3 * 2 * 2.88e6, 32),
}


def seconds(parameters, flops, images, nodes, gbit):
    """Seconds of an iteration: (computing, telling the others)."""
    size = 4 * parameters
    reducing = 2 * (nodes - 1) / nodes * size / (LINE_RATE * gbit * 1e9 / 8) + 2 * math.log2(nodes) * HOP
    return flops * images / FLOPS, reducing + 2 * size / COPY


def efficiency(*case):
    computing, telling = seconds(*case)
    return computing / (computing + telling)


def table():
    """Rows of markdown: the speed-up over one node with its own images, and the efficiency."""
    yield "| | message | compute | network | " + " | ".join(f"{nodes} nodes" for nodes in NODES) + " |"
    yield "|---" * (4 + len(NODES)) + "|"
    for name, (parameters, flops, images) in NETS.items():
        for gbit in NETWORKS:
            cells = []
            for nodes in NODES:
                share = efficiency(parameters, flops, images, nodes, gbit)
                cells.append(f"{share * nodes:.1f} ({share:.0%})")
            first = (name, f"{4e-6 * parameters:.1f} MB", f"{1e3 * flops * images / FLOPS:.1f} ms")
            heads = first if gbit == NETWORKS[0] else ("", "", "")
            yield f"| {' | '.join([*heads, f'{gbit} Gbit', *cells])} |"


if __name__ == "__main__":
    print("\n".join(table()))
