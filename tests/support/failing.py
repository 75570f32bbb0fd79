"""Python layers that ranks differ in: one cannot make it, or each keeps a mean of its own samples."""

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


class KeepsMean(caffe.Layer):
    def setup(self, bottom, top):
        self.blobs.add_blob(1)
        self.blobs[0].data[...] = 0

    def reshape(self, bottom, top):
        top[0].reshape(1)

    def forward(self, bottom, top):
        if self.phase == caffe.TRAIN:
            self.blobs[0].data[...] = bottom[0].data.mean()
        top[0].data[...] = self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        pass
