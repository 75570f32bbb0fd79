"""The benchmark's figures as tables and as a picture."""

REGIMES = ("in training", "back to back")
STATES = ("untrained", "trained")
INDICES = "256x100000"  # its labels are lists of indices

OURS, OTHERS = "#0072B2", "#777777"
# Rows of the picture, from above: the two losses, each beside the other ways to it. {n} is the number of threads.
ROWS = (
    "ours, softmax, 1 thread",
    "ours, softmax, {n} threads",
    "ours, softmax, several labels, {n} threads",
    "ours, softmax without numba, 1 thread",
    "SoftmaxWithLoss, 1 thread",
    "PyTorch cross_entropy, 1 thread",
    "PyTorch cross_entropy, {n} threads",
    "loop layer, 1 thread",
    "ours, sigmoid, 1 thread",
    "ours, sigmoid, {n} threads",
    "SigmoidCrossEntropyLoss, 1 thread",
    "PyTorch BCE, 1 thread",
    "PyTorch BCE, {n} threads",
)


def duration(seconds):
    """Three digits and a unit: 59.1 us, 1.24 ms, 2.35 s."""
    factor, unit = next((pair for pair in ((1e6, "us"), (1e3, "ms")) if seconds * pair[0] < 999.5), (1, "s"))
    value = seconds * factor
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def cell(entry):
    return f"{duration(entry['median'])} ({duration(entry['min'])})"


def title(name):
    return name.replace("x", " x ") + (", labels as lists of indices" if name == INDICES else "")


def table(name, times, most=134):
    """The text table of one shape: medians and, in brackets, minima; sorted by the median in training, trained.

    Where it has to fit less than its 134 letters, the regimes are one below the other.
    """
    parts, width = ([REGIMES], 23) if most >= 134 else ([REGIMES[:1], REGIMES[1:]], 19)
    lines = []
    key = times["in training"]["trained"]
    for regimes in parts:
        lines.append(f"{title(name):43}" + f"{'':{width}}".join(f"{regime:>{width}}" for regime in regimes))
        lines.append(f"{'':42}" + "".join(f"{state:>{width}}" for _ in regimes for state in STATES))
        for contender in sorted(key, key=lambda contender: key[contender]["median"]):
            cells = (cell(times[regime][state][contender]) for regime in regimes for state in STATES)
            lines.append(f"  {contender:40}" + "".join(f"{text:>{width}}" for text in cells))
    return "\n".join(lines) + "\n"


def times_longer(entry, own):
    ratio = entry["median"] / own["median"]
    return f"{ratio:.0f}x" if ratio > 9.95 else f"{ratio:.2g}x"


def readme_table(results):
    """README's table in Markdown: times in training, and how many times longer the others take, trained, one thread.

    Each is compared with ours on labels of its kind: SoftmaxWithLoss on class indices, the others on dense ones.
    """
    n = results["threads"]
    most = f"{n} threads" if n > 1 else "1 thread"
    own, dense = "ours, softmax, 1 thread", "ours, softmax, dense label, 1 thread"
    others = {"SoftmaxWithLoss": own, "PyTorch cross_entropy": dense, "loop layer": dense}
    heads = ["scores", "untrained net", "trained net", f"trained, {most}"]
    heads += ["`SoftmaxWithLoss`", "PyTorch `cross_entropy`", "loop layer"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, times in results["shapes"].items():
        untrained, trained = (times["in training"][state] for state in STATES)
        cells = [title(name), cell(untrained[own]), cell(trained[own]), cell(trained[f"ours, softmax, {most}"])]
        for other, ours in others.items():
            entry = trained.get(f"{other}, 1 thread")
            cells.append(times_longer(entry, trained[ours]) if entry else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_readmes(results, root):
    """Put the tables between their marks in README.md and examples/benchmark/README.md."""
    from multilabel_softmax_loss.prototxt import fill_blocks

    tables = "\n".join(table(name, times) for name, times in results["shapes"].items())
    blocks = {
        root / "README.md": readme_table(results),
        root / "examples" / "benchmark" / "README.md": f"```\n{tables}```\n",
    }
    for path, block in blocks.items():
        path.write_text(fill_blocks(path.read_text(encoding="utf-8"), {"speed": block}), encoding="utf-8")


def draw(results, path):
    """A row of panels for each shape, a column for each regime, one axis for all: hollow untrained, filled trained."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullFormatter

    rows = list(dict.fromkeys(row.format(n=results["threads"]).replace("1 threads", "1 thread") for row in ROWS))
    shapes = results["shapes"]
    shown = {name: [row for row in rows if row in times["in training"]["trained"]] for name, times in shapes.items()}
    counts = [len(of_shape) for of_shape in shown.values()]
    height = 0.23 * sum(counts) + 0.55 * len(counts) + 1.3
    figure, panels = plt.subplots(
        len(shapes), 2, figsize=(11, height), sharex=True, squeeze=False, constrained_layout=True,
        gridspec_kw={"height_ratios": [count + 1 for count in counts]},
    )  # fmt: skip
    for line, (name, times) in zip(panels, shapes.items()):
        for axes, regime in zip(line, REGIMES):
            draw_panel(axes, times[regime], shown[name])
            axes.set_title(f"{title(name)}, {regime}", fontsize=10, loc="left", fontweight="bold")
            if regime == "back to back":
                axes.tick_params(labelleft=False)
    largest = max(e["median"] for t in shapes.values() for r in t.values() for s in r.values() for e in s.values())
    panels[0, 0].set_xscale("log")
    panels[0, 0].set_xlim(right=largest * 8)  # room for the times beside the marks
    for axes in panels.flat:
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: duration(value).replace(".00", "").replace(".0", ""))
        )
        axes.xaxis.set_minor_formatter(NullFormatter())
    marks = [
        Line2D([], [], color=OURS, marker="o", linestyle="", label="this package, trained net"),
        Line2D([], [], color=OURS, marker="o", linestyle="", markerfacecolor="white", label="this package, untrained"),
        Line2D([], [], color=OTHERS, marker="s", linestyle="", label="others, trained net"),
        Line2D([], [], color=OTHERS, marker="s", linestyle="", markerfacecolor="white", label="others, untrained"),
    ]
    figure.legend(handles=marks, ncol=4, frameon=False, loc="upper center")
    figure.suptitle("\n", fontsize=8)  # room for the legend
    figure.supxlabel(
        "median time of one forward and backward of the loss: further left is faster\n"
        "in training: about 5 ms of other work between two calls; trained: all positions are certain",
        fontsize=9,
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_panel(axes, times, rows):
    for row, contender in enumerate(rows):
        untrained, trained = (times[state][contender]["median"] for state in STATES)
        color, marker = (OURS, "o") if contender.startswith("ours") else (OTHERS, "s")
        axes.plot([untrained, trained], [row, row], color=color, linewidth=1.5)
        axes.plot(untrained, row, marker, color=color, markerfacecolor="white", markersize=6)
        axes.plot(trained, row, marker, color=color, markersize=5)
        text = f"  {duration(trained)}"
        axes.text(max(untrained, trained), row, text, va="center", fontsize=8, color=color)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels(rows, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.tick_params(axis="x", labelsize=8, labelbottom=True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
