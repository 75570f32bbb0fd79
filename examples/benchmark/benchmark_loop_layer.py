"""The layer that people copy from a blog post, rebuilt from its description: a Python loop for each sample and class.

R. Gomez, Understanding Categorical Cross-Entropy Loss, ..., 2018 (CustomSoftmaxLoss): loss (1/M) sum_k y_k (-log p_k),
gradient (p_k - 1) / M summed over the M labels of a sample. For the clock only; its gradient ignores label values.
"""

import caffe
import numpy as np


class LoopLayer(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(1)
        self.probs = np.zeros(bottom[0].data.shape, np.float32)

    def forward(self, bottom, top):
        scores, labels = bottom[0].data, bottom[1].data
        loss = 0.0
        for n in range(len(scores)):
            exps = np.exp(scores[n] - scores[n].max())
            self.probs[n] = exps / exps.sum()
            count = np.count_nonzero(labels[n])
            for k in range(len(labels[n])):
                if labels[n, k] != 0:
                    loss -= labels[n, k] * np.log(self.probs[n, k]) / count
        top[0].data[...] = loss / len(scores)

    def backward(self, top, propagate_down, bottom):
        labels, gradient = bottom[1].data, bottom[0].diff
        for n in range(len(labels)):
            count = np.count_nonzero(labels[n])
            for k in range(len(labels[n])):
                gradient[n, k] = (count * self.probs[n, k] - (labels[n, k] != 0)) / (count * len(labels))
