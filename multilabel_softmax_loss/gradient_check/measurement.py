"""The gradients of the layer under test, judged one by one: where, on how many samples, and what a factor is called."""

import time
from typing import List, Tuple

import numpy as np

from .diagnosis import factor_names
from .judgement import Judgement, Question, judge
from .report import NOTE, Finding
from .runners import Runner, flat
from .subject import RAISED, Subject, distance

FEWER_SAMPLES = (8, 2, 1)  # tried where rounding hides too much in all of them


class Measurement:
    """The numbers of one check.

    Parameters
    ----------
    subject : Subject
    stand_in, caffe_runner : Runner or None
        The layer on float64 and in a net, at least one of them. The stand-ins give the verdict where both agree.
    tolerance : float
    deadline : float
        By time.monotonic().
    """

    def __init__(self, subject: Subject, stand_in, caffe_runner, tolerance: float, deadline: float):
        self.subject, self.stand_in, self.caffe_runner = subject, stand_in, caffe_runner
        self.tolerance, self.deadline = tolerance, deadline

    def judge_all(self) -> Tuple[List[Judgement], str]:
        """The judgement of every array checked, and what it is of."""
        subject, stand_in, caffe_runner = self.subject, self.stand_in, self.caffe_runner
        judgements, modes = [], []
        targets = subject.checked(caffe_runner or stand_in)
        agreement = self.agreement() if stand_in and caffe_runner else []
        for k, target in enumerate(targets):
            deadline = time.monotonic() + (self.deadline - time.monotonic()) / (len(targets) - k)
            if stand_in is not None and (caffe_runner is None or agreement[target] <= self.tolerance):
                judged, samples = self.judge_lifted(stand_in, target, deadline)
                mode = "float64 stand-ins" + samples
                if caffe_runner is not None:
                    mode += f", with which Caffe agrees to {max(agreement[target], 1e-9):.1g}"
            else:
                judged, samples = self.judge_lifted(caffe_runner, target, deadline)
                mode = "Caffe, float32" + samples
                if stand_in is not None:
                    mode += "; on float64 stand-ins the layer does something else"
            runner = caffe_runner or stand_in
            judged = self.name_by_batch(runner, target, judged, deadline)
            judgements.append(self.name_by_top(runner, target, judged, deadline))
            modes.append(mode)
        if subject.gain != 1:
            modes[-1] += f", at {subject.gain:.1g} times the loss weight, as the gradient underflows in float32"
        return judgements, "; ".join(dict.fromkeys(modes))

    def agreement(self) -> List[float]:
        """Relative difference of gradients in Caffe and on the stand-ins, that of the outputs included."""
        subject, stand_in, caffe_runner = self.subject, self.stand_in, self.caffe_runner
        outputs = distance(flat(subject.forward(stand_in)), flat(subject.forward(caffe_runner)))
        double, single = subject.gradient(stand_in), subject.gradient(caffe_runner)
        return [max(outputs, distance(a, b)) for a, b in zip(double, single)]

    def judge(self, runner: Runner, target: int, arrays, deadline: float, coordinates=True) -> Judgement:
        """Analytic and numeric gradient of one array, on one way of running the layer."""
        subject, count = self.subject, len(arrays)
        weights = subject.top_weights(subject.forward(runner, arrays))
        analytic = runner.backward(weights, subject.propagate)[target].astype(np.float64)
        x = (arrays[target] if target < count else subject.parameters[target - count]).astype(runner.dtype)

        def outputs(values):
            if target < count:
                moved = [values if i == target else array for i, array in enumerate(arrays)]
                return flat(subject.forward(runner, moved))
            runner.blobs[target - count].data[...] = values
            return flat(subject.forward(runner, arrays))

        question = Question(
            outputs=outputs, weights=flat(weights).astype(np.float64), analytic=analytic, x=x,
            array=subject.names(runner)[target], tolerance=self.tolerance, seed=subject.seed, deadline=deadline,
            sizes=subject.sizes(arrays, target), coordinates=coordinates,
        )  # fmt: skip
        try:
            return judge(question)
        finally:
            runner.set_parameters(subject.parameters)

    def judge_lifted(self, runner: Runner, target: int, deadline: float) -> Tuple[Judgement, str]:
        """Judge; where rounding hides too much, on fewer samples, each of which weighs more in a mean.

        Two lifts have their place elsewhere: `Subject.lift_loss_weight`, and `more_directions` in every judgement.
        """
        subject = self.subject
        now = time.monotonic()
        judged = self.judge(runner, target, subject.arrays, now + 0.5 * (deadline - now))
        size = subject.batch()
        for count in FEWER_SAMPLES:
            if judged.verdict != "inconclusive":
                break
            if count >= size:
                continue
            now = time.monotonic()
            rows = np.random.RandomState(subject.seed).choice(size, count, replace=False)
            try:
                part = self.judge(runner, target, subject.resized(np.sort(rows)), now + 0.5 * (deadline - now))
            except RAISED:
                continue  # a layer may refuse a batch
            # All samples together need only confirm the scale, which many probes tell better than each.
            confirmed = abs(judged.factor - 1) <= judged.factor_bar < 0.1
            if part.verdict == "fail" or (part.verdict == "pass" and confirmed):
                return part, f" on {count} of the {size} samples, as more hide in rounding"
        return judged, ""

    def name_by_batch(self, runner: Runner, target: int, judged: Judgement, deadline: float) -> Judgement:
        """Of the names a wrong factor may have, keep those that also fit at another batch: 2 is N at batch 2 only."""
        subject = self.subject
        size = subject.batch()
        finding = next((f for f in judged.findings if f.name == "wrong-factor"), None)
        if finding is None or finding.count(" or ") == 0 or not size:
            return judged
        arrays = subject.resized(np.arange(size + 3) % size)
        try:
            other = self.judge(runner, target, arrays, deadline, coordinates=False)
        except RAISED:
            return judged
        here = factor_names(judged.factor, subject.sizes(subject.arrays, target), 4 * self.tolerance)
        there = factor_names(other.factor, subject.sizes(arrays, target), 4 * self.tolerance)
        kept = [name for name in here if name.split(" with ")[0] in [t.split(" with ")[0] for t in there]]
        if not kept:
            return judged
        array = subject.names(runner)[target]
        sentence = f"{array}: the gradient is {judged.factor:.4g} times the slope of the loss: "
        sentence += f"{' or '.join(kept)}, as another batch confirms."
        findings = [Finding("wrong-factor", sentence) if f is finding else f for f in judged.findings]
        return judged._replace(findings=findings)

    def name_by_top(self, runner: Runner, target: int, judged: Judgement, deadline: float) -> Judgement:
        """Where the gradient is that of some tops only, say which: the others may be there to look at."""
        subject = self.subject
        weights = subject.spec.loss_weights
        weighted = [k for k, weight in enumerate(weights) if weight]
        if judged.verdict != "fail" or len(weighted) < 2:
            return judged
        right = []
        for top in weighted:
            only = tuple(weight if k == top else 0.0 for k, weight in enumerate(weights))
            subject.spec = subject.spec._replace(loss_weights=only)
            try:
                one = self.judge(runner, target, subject.arrays, deadline, coordinates=False)
            finally:
                subject.spec = subject.spec._replace(loss_weights=weights)
            right += [top] if one.verdict == "pass" else []
        if not right:
            return judged
        alone, rest = (
            ", ".join(f"top[{k}]" for k in weighted if (k in right) == wanted) for wanted in (True, False)
        )  # fmt: skip
        sentence = (
            f"{subject.names(runner)[target]}: the gradient is right for {alone} alone; "
            f"if nothing learns from {rest or 'the others'}, as from a metric, give it loss_weight 0."
        )
        return judged._replace(findings=[*judged.findings, Finding("right-for-one-top", sentence, NOTE)])
