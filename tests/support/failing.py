"""A Python layer that one rank cannot make."""

import caffe


class FailsOnRank1(caffe.Layer):
    def setup(self, bottom, top):
        if caffe.solver_rank() == 1:
            raise ValueError("no such device")

    def reshape(self, bottom, top):
        top[0].reshape(1)

    def forward(self, bottom, top):
        pass

    def backward(self, top, propagate_down, bottom):
        pass
