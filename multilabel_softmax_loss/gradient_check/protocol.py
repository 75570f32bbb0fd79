"""The protocol of a Caffe layer, one check per rule: each yields a finding for every breach."""

from typing import Callable, Iterator, List, NamedTuple

import numpy as np

from .generators import state_of_all
from .report import FAULT, PROTOCOL, WARNING, Finding
from .runners import Runner, flat
from .subject import RAISED, Subject, all_close, close, raised, said


class Rule(NamedTuple):
    """A check, and where it applies."""

    check: Callable[[Subject, Runner], Iterator[Finding]]
    in_caffe: bool = False  # it makes nets, and needs a loss that repeats itself
    if_blobs: bool = False  # only where the layer has learnable blobs


def breach(name: str, sentence: str, harm: bool = True, otherwise: str = "") -> Finding:
    """A fault where it does harm as things stand; else a warning that says why it does none, and when it would."""
    return Finding(name, sentence if harm else f"{sentence} {otherwise}", FAULT if harm else WARNING, PROTOCOL)


def check_protocol(subject: Subject, runner: Runner) -> List[Finding]:
    """What a layer does against the rules, in the order of RULES; no more than one finding of a name."""
    findings: List[Finding] = []

    def names():
        return {finding.name for finding in findings}

    def follow(check):
        try:
            for finding in check(subject, runner):
                if finding.name not in names():
                    findings.append(finding)
        except RAISED as error:
            findings.append(raised(error))

    follow(check_forward)
    if names() & {"loss-not-finite", "raises", "raises-in-forward", "raises-in-reshape", "raises-in-backward"}:
        return findings
    try:
        subject.lift_loss_weight(runner)
    except RAISED as error:
        return [*findings, raised(error)]
    for rule in RULES:
        if (rule.in_caffe and not (subject.in_caffe and subject.repeats)) or (rule.if_blobs and not len(runner.blobs)):
            continue
        follow(rule.check)
        # What else goes wrong would follow from these.
        if names() & {"raises-in-forward", "raises-in-backward", "gradient-not-finite", "state-leaks"}:
            break
    return findings


def check_forward(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """Forward leaves its bottoms alone and repeats itself, whatever random numbers and forwards came before."""
    before = state_of_all(runner.layer)
    runner.load(subject.arrays)
    runner.run_forward()
    yield from written_data(subject, runner, "forward changes the data of bottom[{}]")
    outputs = flat([runner.tops[i].data.copy() for i in range(len(runner.tops))])
    if not np.isfinite(outputs).all():
        yield Finding("loss-not-finite", f"the top holds {outputs[~np.isfinite(outputs)][0]}.")
        return
    if state_of_all(runner.layer) != before:
        subject.reseed = True
        drawn = [results(subject, runner, offset) for offset in (0, 0, 0, 1, 2)]
        if all_close(drawn[:3]):
            if not all_close(drawn):
                yield random_loss("it draws random numbers, as dropout and sampling do; checked with one seed")
            return
    repeated = [outputs, *(flat(subject.forward(runner)) for _ in range(2))]
    if all_close(repeated):
        return
    fresh = [flat(subject.forward(subject.fresh())) for _ in range(3)] if subject.in_caffe else []
    again = f"{float(repeated[0][0]):g}, then {float(repeated[1][0]):g} on the same data"
    if fresh and all_close(fresh):
        yield breach("state-leaks", f"the loss depends on the forwards before it: {again}.")
        return
    subject.repeats = False
    yield random_loss(f"{again}, and new nets differ too: it draws from a generator that nothing seeds")


def random_loss(why: str) -> Finding:
    otherwise = "Harmless in training; tests and resumed runs do not repeat themselves."
    return breach("random-loss", f"the same data give another loss or gradient each time: {why}.", False, otherwise)


def results(subject: Subject, runner: Runner, offset: int) -> np.ndarray:
    """All that a forward and a backward make, seeded."""
    subject.set_seed(runner, offset)
    outputs = runner.forward(subject.arrays)
    gradients = subject.gradient(runner)
    return flat([*outputs, *(gradients[i] for i in subject.checked(runner))])


def written_data(subject: Subject, runner: Runner, sentence: str) -> Iterator[Finding]:
    for i, array in enumerate(subject.arrays):
        if not np.array_equal(runner.bottoms[i].data, array.astype(runner.dtype), equal_nan=True):
            harm = i not in subject.circumstances.private
            changed = sentence.format(i) + (", which other layers read in forward and backward." if harm else ".")
            otherwise = "Harmless here: no other layer reads it, and it is made anew for every forward."
            yield breach("writes-bottom-data", changed, harm, otherwise)


def check_written(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """Backward writes every entry of the bottoms' diffs, and neither the tops nor the data. The diffs are poisoned."""
    subject.forward(runner)
    weights = subject.weights(runner)
    poisoned = subject.gradient(runner, fill=np.nan)
    tops = [runner.tops[i].diff for i in range(len(runner.tops))]
    if not all(np.array_equal(diff, weight) for diff, weight in zip(tops, weights)):
        losses = any(weight.size == 1 and weight.any() for weight in weights) and not subject.circumstances.passes_on
        sentence = "backward changes top[...].diff"
        sentence += ", where Caffe puts loss_weight once and for all: it is another one from the next iteration on."
        yield breach("writes-top-diff", sentence, losses, "Harmless here: the layers above fill it anew.")
    yield from written_data(subject, runner, "backward finds or makes the data of bottom[{}] changed")
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
            yield breach(
                "unwritten-diff",
                f"backward leaves {int(spoiled.sum())} of {spoiled.size} entries of bottom[{i}].diff unwritten, "
                f"such as {where}; Caffe does not clear them, and they keep what an earlier iteration wrote.",
            )
        else:
            sentence = f"backward adds to what bottom[{i}].diff held instead of replacing it: gradients pile up."
            yield breach("accumulates-diff", sentence)


def check_second_backward(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """Backward may be called twice."""
    subject.forward(runner)
    first = subject.gradient(runner)
    second = subject.gradient(runner)
    for i in subject.checked(runner):
        if not close(first[i], second[i]):
            name = subject.names(runner)[i]
            sentence = f"a second backward gives another {name}.diff."
            otherwise = "Harmless in training, where every backward has its own forward."
            yield breach("second-backward-differs", sentence, False, otherwise)
            return


def check_linear(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """The gradient is linear in the tops' diffs, which carry loss_weight: at 1, -3 and 0, and of one top at a time."""
    subject.forward(runner)
    weights = subject.weights(runner)

    def at(*scales):
        subject.forward(runner)
        diffs = subject.gradient(runner, [np.float32(scale) * weight for scale, weight in zip(scales, weights)])
        return [diff.astype(np.float64) for diff in diffs]

    count = len(weights)
    one, minus_three, zero = (at(*[scale] * count) for scale in (1, -3, 0))
    alone = [at(*(float(k == top) for k in range(count))) for top in range(count)] if count > 1 else []
    harm = subject.diffs_vary(runner)
    otherwise = "Harmless while loss_weight is 1."
    for i in subject.checked(runner):
        name = subject.names(runner)[i]
        if not one[i].any():
            continue
        if close(one[i], minus_three[i]):
            sentence = f"{name}.diff does not depend on top.diff, which carries loss_weight."
            yield breach("ignores-loss-weight", sentence, harm, otherwise)
        elif not close(-3 * one[i], minus_three[i]) or not close(zero[i], 0 * one[i], np.abs(one[i]).max()):
            sentence = f"{name}.diff at -3 times top.diff is not -3 times what it was."
            yield breach("not-linear-in-top-diff", sentence, harm, otherwise)
        elif alone and not close(sum(part[i] for part in alone), one[i]):
            sentence = f"{name}.diff is no sum of what each top's diff alone makes it."
            yield breach("not-linear-in-top-diff", sentence, harm, otherwise)


def check_propagate_down(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """Backward writes a bottom's diff where propagate_down says so, and nowhere else."""
    count, wrt, circumstances = len(subject.arrays), subject.spec.wrt, subject.circumstances
    for i in range(count):
        flags = [k != i and k in wrt for k in range(count)]
        subject.forward(runner)
        try:
            diffs = subject.gradient(runner, fill=np.nan, propagate=flags)
        except RAISED as error:
            sentence = f"backward raises with propagate_down[{i}] false: {said(error)}."
            otherwise = f"Harmless while bottom[{i}] gets a gradient, or nothing does."
            yield breach("ignores-propagate-down", sentence, False, otherwise)
            return
        if not np.isnan(diffs[i]).all():
            sentence = f"backward writes bottom[{i}].diff though propagate_down[{i}] is false."
            otherwise = "Harmless, but for the time it takes, unless propagate_down: false is to stop a gradient."
            yield breach("ignores-propagate-down", sentence, i in circumstances.stops, otherwise)
    others = [i for i in range(count) if i not in wrt]
    is_loss = any(runner.tops[i].data.size == 1 for i in range(len(runner.tops)))
    if not others or not is_loss:
        return  # what is no label is no constant either: its diff is a matter of `wrt`
    subject.forward(runner)
    otherwise = "Harmless without force_backward."
    try:
        diffs = subject.gradient(runner, fill=np.nan, propagate=[True] * count)
    except RAISED as error:
        sentence = f"with force_backward, backward raises {said(error)}."
        yield breach("refuses-force-backward", sentence, circumstances.force_backward, otherwise)
        return
    for i in others:
        if np.isnan(diffs[i]).any():
            sentence = f"under force_backward, backward leaves bottom[{i}].diff unfilled; a constant has zeros there."
            yield breach("label-diff-unfilled", sentence, circumstances.force_backward, otherwise)


def check_parameters(subject: Subject, runner: Runner) -> Iterator[Finding]:
    """Caffe clears parameter diffs once per iteration, and expects layers to add to them."""
    subject.forward(runner)
    once = subject.gradient(runner)
    runner.run_backward(subject.propagate)
    for i in range(len(runner.blobs)):
        expected = once[len(subject.arrays) + i]
        if expected.any() and close(runner.blobs[i].diff, expected):
            sentence = f"backward replaces blobs[{i}].diff; iter_size and shared weights need it added to."
            otherwise = "Harmless while iter_size is 1 and nothing shares the blob."
            harm = subject.circumstances.shares_parameters
            yield breach("overwrites-parameter-diff", sentence, harm, otherwise)


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
            yield breach("state-leaks", "the loss is another one after a forward on other data.")
            return
        gradients = subject.gradient(new), subject.gradient(used)
        if not all(close(gradients[0][i], gradients[1][i]) for i in subject.checked(runner)):
            yield breach("state-leaks", "the gradient is another one after a forward on other data.")
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
            yield breach("wrong-after-reshape", f"{changed} it raises {said(error)}.")
            return
        pairs = [("loss", flat(loss), flat(again))]
        pairs += [(f"{subject.names(runner)[i]}.diff", gradient[i], after[i]) for i in subject.checked(runner)]
        for what, expected, found in pairs:
            if not close(expected, found):
                yield breach("wrong-after-reshape", f"{changed}, {what} differs from that of a new layer.")
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
