"""What a conversion did, as the content of report.json and in a few lines."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Dict, List, Sequence

from ..errors import shortlist
from .conversion import Plan, Progress
from .source import Found

MOST = 1000  # groups of duplicates that are listed


def side_of(plan: Plan) -> Dict[int, str]:
    return {row: name for name, rows in plan.orders for row in rows.tolist()}


def report(
    plan: Plan, found: Found, progress: Progress, written: Dict[str, List[int]], groups: Sequence[Sequence[int]]
) -> Dict[str, Any]:
    """Counts by class and split, bad images with the reason, duplicates, and what was said of the source."""
    labels, side = plan.labels, side_of(plan)
    counts = {name: labels.counts(rows) for name, rows in written.items()}
    across = [group for group in groups if len({side[row] for row in group if row in side}) > 1]
    differing = [group for group in groups if len({repr(labels.dense(row).tolist()) for row in group}) > 1]

    def named(chosen: Sequence[Sequence[int]]) -> List[List[str]]:
        return [[labels.paths[row] for row in group] for group in chosen[:MOST]]

    return {
        "formats": found.formats,
        "notes": found.notes,
        "images": {name: len(rows) for name, rows in written.items()},
        "without_labels": {
            name: sum(not (labels.row(row)[1] > 0).any() for row in rows) for name, rows in written.items()
        },
        "mean": progress.channel_means(),
        "classes": [
            {"class": name, **{split: int(count[k]) for split, count in counts.items()}}
            for k, name in enumerate(labels.classes)
        ],
        "bad_images": progress.bad,
        "duplicates": {
            "groups": len(groups),
            "images": sum(map(len, groups)),
            "across_splits": named(across),
            "with_different_labels": named(differing),
            "listed": named(groups),
        },
    }


def told(content: Dict[str, Any]) -> str:
    """The lines of a report that a user should not miss."""
    images = ", ".join(f"{name} {count:,}" for name, count in content["images"].items())
    lines = [f"Written: {images} images."]
    bad = {path: reason for found in content["bad_images"].values() for path, reason in found.items()}
    if bad:
        kinds = Counter(re.split(r":| \(", reason)[0] for reason in bad.values()).most_common()
        lines.append(
            f"{len(bad):,} bad images left out ({', '.join(f'{kind} {count}' for kind, count in kinds[:5])}): "
            f"{shortlist(f'{path}: {reason}' for path, reason in bad.items())}."
        )
    duplicates = content["duplicates"]
    if duplicates["groups"]:
        lines.append(f"{duplicates['images']:,} images are {duplicates['groups']:,} by content: duplicates are kept.")
    if duplicates["across_splits"]:
        lines.append(f"{len(duplicates['across_splits'])} of them stand in several splits, as the split was given.")
    if duplicates["with_different_labels"]:
        first = duplicates["with_different_labels"][0]
        lines.append(
            f"{len(duplicates['with_different_labels'])} of them have labels that differ, such as {shortlist(first)}."
        )
    for split, count in content["images"].items():
        absent = [entry["class"] for entry in content["classes"] if not entry[split]]
        if absent and count:
            lines.append(f"{len(absent)} classes have no image in {split}: {shortlist(absent)}.")
    return "\n".join(lines)
