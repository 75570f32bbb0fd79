"""The protocol of a Caffe layer, one check per rule: each yields a finding for every breach."""

from typing import Callable, Iterator, List, NamedTuple

import numpy as np

from .report import Finding
from .runners import Runner, flat
from .subject import RAISED, Subject, all_close, close, raised, said


class Rule(NamedTuple):
    """A check, and where it applies."""

    check: Callable[[Subject, Runner], Iterator[Finding]]
    in_caffe: bool = False  # it makes nets, and needs a loss that repeats itself
    if_blobs: bool = False  # only where the layer has learnable blobs


def check_protocol(subject: Subject, runner: Runner) -> List[Finding]:
    """What a layer does against the rules, in the order of RULES; no more than one finding of a name."""
    findings: List[Finding] = []

    def names():
        return [finding.name for finding in findings]

    def follow(check):
        try:
            for finding in check(subject, runner):
                if finding.name not in names():
                    findings.append(finding)
        except RAISED as error:
            findings.append(Finding(*raised(error)))

    follow(check_forward)
    if {"loss-not-finite", "raises-in-forward", "raises-in-reshape"} & set(names()):
        return findings
    try:
        subject.lift_loss_weight(runner)
    except RAISED as error:
        return [*findings, Finding(*raised(error))]
    repeats = "random-loss" not in names()
    for rule in RULES:
        if (rule.in_caffe and not (subject.in_caffe and repeats)) or (rule.if_blobs and not len(runner.blobs)):
            continue
        follow(rule.check)
        # What else goes wrong would follow from these.
        if {"raises-in-forward", "raises-in-backward", "gradient-not-finite", "state-leaks"} & set(names()):
            break
    return findings


def check_forward(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """Forward leaves its bottoms alone and repeats itself, whatever random numbers and forwards came before."""
    runner.load(subject.arrays)
    runner.run_forward()
    for i, array in enumerate(subject.arrays):
        if not np.array_equal(runner.bottoms[i].data, array.astype(runner.dtype), equal_nan=True):
            yield Finding("writes-bottom-data", f"forward changes the data of bottom[{i}].")
    outputs = [flat([runner.tops[i].data.copy() for i in range(len(runner.tops))])]
    if not np.isfinite(outputs[0]).all():
        yield Finding("loss-not-finite", f"the top holds {outputs[0][~np.isfinite(outputs[0])][0]}.")
        return
    outputs += [flat(runner.forward(subject.arrays)) for _ in range(2)]
    if close(outputs[0], outputs[1]) and close(outputs[0], outputs[2]):
        return
    repeated = []
    for _ in range(3):  # two draws may be alike by chance
        subject.set_seed()
        repeated.append(flat(runner.forward(subject.arrays)))
    fresh = []
    if subject.in_caffe:
        for offset in (1, 2, 3):  # not what setup draws, only what forward does
            one = subject.fresh()
            subject.set_seed(offset)
            fresh.append(flat(one.forward(subject.arrays)))
    first, second = float(outputs[0].flat[0]), float(outputs[1].flat[0])
    again = f"{first:g}, then {second:g} on the same data"
    hidden = "the loss depends on hidden randomness"
    if all_close(repeated):
        subject.reseed = True
        yield Finding("random-loss", f"{hidden}: {again}; equal with NumPy's generator seeded.")
    elif fresh and all_close(fresh):
        yield Finding("state-leaks", f"the loss depends on the forwards before it: {again}.")
    else:
        yield Finding("random-loss", f"{hidden}: {again}, and new nets differ too.")


def check_written(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """Backward writes every entry of the bottoms' diffs, and neither the tops nor the data. The diffs are poisoned."""
    subject.forward(runner)
    poisoned = subject.gradient(runner, fill=np.nan)
    tops = [runner.tops[i].diff for i in range(len(runner.tops))]
    if not all(np.array_equal(diff, weight) for diff, weight in zip(tops, subject.weights)):
        yield Finding("writes-top-diff", "backward changes top[...].diff, where Caffe keeps loss_weight for good.")
    for i, array in enumerate(subject.arrays):
        if not np.array_equal(runner.bottoms[i].data, array.astype(runner.dtype), equal_nan=True):
            yield Finding("writes-bottom-data", f"backward finds or makes the data of bottom[{i}] changed.")
    for i in subject.spec.wrt:
        spoiled = ~np.isfinite(poisoned[i])
        if not spoiled.any():
            continue
        subject.forward(runner)
        zero = subject.gradient(runner)[i]
        subject.forward(runner)
        one = subject.gradient(runner, fill=1.0)[i]
        where = np.argwhere(spoiled)[0].tolist()
        if not np.isfinite(zero).all():
            where = np.argwhere(~np.isfinite(zero))[0].tolist()
            yield Finding("gradient-not-finite", f"bottom[{i}].diff{where} is {zero[tuple(where)]}.")
        elif (zero[spoiled] == 0).all() and (one[spoiled] == 1).all():
            yield Finding(
                "unwritten-diff",
                f"backward leaves {int(spoiled.sum())} of {spoiled.size} entries of bottom[{i}].diff unwritten, "
                f"such as {where}; Caffe does not clear them.",
            )
        else:
            yield Finding("accumulates-diff", f"backward adds to what bottom[{i}].diff held instead of replacing it.")


def check_second_backward(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """Backward may be called twice."""
    subject.forward(runner)
    first = subject.gradient(runner)
    second = subject.gradient(runner)
    for i in subject.checked(runner):
        if not close(first[i], second[i]):
            name = subject.names(runner)[i]
            yield Finding("second-backward-differs", f"a second backward gives another {name}.diff.")
            return


def check_linear(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """The gradient is linear in top.diff, which carries loss_weight: at 1, -3 and 0."""
    results = []
    for scale in (1, -3, 0):
        subject.forward(runner)
        results.append(subject.gradient(runner, [np.float32(scale) * weight for weight in subject.weights]))
    for i in subject.checked(runner):
        one, minus_three, zero = (result[i].astype(np.float64) for result in results)
        name = subject.names(runner)[i]
        if not one.any():
            continue
        if close(one, minus_three):
            yield Finding("ignores-loss-weight", f"{name}.diff does not depend on top.diff, which carries loss_weight.")
        elif not close(-3 * one, minus_three) or not close(zero, 0 * one, np.abs(one).max()):
            sentence = f"{name}.diff at -3 times top.diff is not -3 times what it was."
            yield Finding("not-linear-in-top-diff", sentence)


def check_propagate_down(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """Backward writes a bottom's diff where propagate_down says so, and nowhere else."""
    count, wrt = len(subject.arrays), subject.spec.wrt
    for i in range(count):
        flags = [k != i and k in wrt for k in range(count)]
        subject.forward(runner)
        try:
            diffs = subject.gradient(runner, fill=np.nan, propagate=flags)
        except RAISED as error:
            sentence = f"backward raises with propagate_down[{i}] false: {said(error)}."
            yield Finding("ignores-propagate-down", sentence)
            return
        if not np.isnan(diffs[i]).all():
            sentence = f"backward writes bottom[{i}].diff though propagate_down[{i}] is false."
            yield Finding("ignores-propagate-down", sentence)
    others = [i for i in range(count) if i not in wrt]
    if not others:
        return
    subject.forward(runner)
    try:
        diffs = subject.gradient(runner, fill=np.nan, propagate=[True] * count)
    except RAISED as error:
        sentence = f"with force_backward, backward raises {said(error)}."
        yield Finding("refuses-force-backward", sentence, fatal=False)
        return
    for i in others:
        if np.isnan(diffs[i]).any():
            sentence = f"under force_backward, backward leaves bottom[{i}].diff unfilled; a constant has zeros there."
            yield Finding("label-diff-unfilled", sentence)


def check_parameters(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """Caffe clears parameter diffs once per iteration, and expects layers to add to them."""
    subject.forward(runner)
    once = subject.gradient(runner)
    runner.run_backward(subject.propagate)
    for i in range(len(runner.blobs)):
        expected = once[len(subject.arrays) + i]
        if expected.any() and close(runner.blobs[i].diff, expected):
            sentence = f"backward replaces blobs[{i}].diff; iter_size and shared weights need it added to."
            yield Finding("overwrites-parameter-diff", sentence, fatal=False)


def check_state(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """Another forward in between changes neither the loss nor the gradient."""
    other = subject.others()
    if other is None:
        return
    new, used = subject.fresh(), subject.fresh()
    subject.forward(used)
    subject.gradient(used)
    for arrays in (other, subject.arrays):
        if not close(flat(subject.forward(new, arrays)), flat(subject.forward(used, arrays))):
            yield Finding("state-leaks", "the loss is another one after a forward on other data.")
            return
        gradients = subject.gradient(new), subject.gradient(used)
        if not all(close(gradients[0][i], gradients[1][i]) for i in subject.checked(runner)):
            yield Finding("state-leaks", "the gradient is another one after a forward on other data.")
            return
        new = subject.fresh()


def check_reshape(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """After a reshape to another batch, the layer does what a new one of that batch does."""
    size = subject.batch()
    for count in (size + 1, max(1, size // 2)) if size else ():
        arrays = subject.resized(np.arange(count) % size)
        try:
            new = subject.fresh(arrays)
            loss = subject.forward(new, arrays)
            weights = subject.top_weights(loss)
            gradient = subject.gradient(new, weights)
        except RAISED:
            continue  # a layer may refuse a batch; then there is nothing to compare with
        old = subject.fresh()
        subject.forward(old)
        subject.gradient(old)
        changed = f"after a reshape from batch {size} to {count}"
        try:
            again = subject.forward(old, arrays)
            after = subject.gradient(old, weights)
        except RAISED as error:
            yield Finding("wrong-after-reshape", f"{changed} it raises {said(error)}.")
            return
        pairs = [("loss", flat(loss), flat(again))]
        pairs += [(f"{subject.names(runner)[i]}.diff", gradient[i], after[i]) for i in subject.checked(runner)]
        for what, expected, found in pairs:
            if not close(expected, found):
                yield Finding("wrong-after-reshape", f"{changed}, {what} differs from that of a new layer.")
                return


RULES = (
    Rule(check_written),
    Rule(check_state, in_caffe=True),
    Rule(check_reshape, in_caffe=True),
    Rule(check_second_backward),
    Rule(check_linear),
    Rule(check_propagate_down),
    Rule(check_parameters, if_blobs=True),
)
