"""How the functions of this room are compiled by numba, and how the machine code is kept from one process to the next.

numba's cache asks only whether a function's own file has changed, and believes what it reads. Here the digest of all
sources of the room is part of each function's name, and each file of the cache ends with a digest of its content: what
is out of date, cut short or overwritten is compiled anew.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from contextlib import suppress
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import config, njit, types
from numba.core.caching import IndexDataCacheFile
from numba.extending import intrinsic

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, so the kernels cannot be compiled")

# reassoc lets sums use SIMD lanes. Nothing may assume that there is no NaN or infinity: they must be seen. Functions
# within kernels need no entrance from Python, which would take a quarter of the time to compile.
FAST = {"reassoc", "nsz", "contract"}
WITHIN = {"forceinline": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
summing = njit(fastmath=FAST, **WITHIN)
inlined = njit(fastmath={"contract"}, **WITHIN)  # no reassoc: it would undo the rounding in exp

# Of a kernel's arguments by their names; the others are int64.
TYPES = {
    **dict.fromkeys(("scores", "labels", "gradient", "probs"), types.float32[::1]),
    **dict.fromkeys(("weight", "class_weight", "positive", "negative"), types.float64[::1]),
    **dict.fromkeys(("factor", "step", "smoothing", "up_gamma", "down_gamma", "margin"), types.float64),
    **dict.fromkeys(("ignoring", "turned", "plain", "per_pair"), types.boolean),
    "ignore_label": types.float32,
}

SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
DIGEST_SIZE = hashlib.sha256().digest_size


def compiled(function: Any) -> Any:
    """The function compiled when it is wanted; the machine code is kept beside this file, or in the user's cache."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": FAST}
    function.__qualname__ += f"-{SOURCES[:16]}"  # names the files of the cache
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no folder that it may write to
        warnings.warn(
            "multilabel_softmax_loss cannot keep its compiled kernels, so each process compiles them anew (seconds).\n"
            "    Set NUMBA_CACHE_DIR to a folder that may be written to.",
            RuntimeWarning,
            stacklevel=1,  # this line, so that it is shown once for all kernels
        )
        return njit(**options)(function)
    dispatcher._cache._cache_file.__class__ = SealedFile
    return dispatcher


@lru_cache(maxsize=None)
def machine_code(kernel: Any) -> Any:
    """The kernel as a function for arguments of its TYPES alone; that arrays are in C order is not checked any more.

    numba's own way looks at the type of each argument in each call, which takes 10 us in training: a tenth of what the
    layer takes for 64 x 20 scores.
    """
    return kernel.compile(tuple(TYPES.get(name, types.int64) for name in signature(kernel.py_func).parameters))


class SealedFile(IndexDataCacheFile):
    """The index and the machine code of one function; a file whose digest is wrong counts as none."""

    def _dump(self, content: Any) -> bytes:
        data = super()._dump(content)
        return data + hashlib.sha256(data).digest()  # pickle reads no further than the end of its data

    def _load_index(self) -> dict:
        with suppress(OSError):
            data = Path(self._index_path).read_bytes()
            version = pickle.dumps(self._version, protocol=-1)
            if data.startswith(version) and is_sealed(data[len(version) :]):
                return super()._load_index()
        return {}

    def _load_data(self, name: str) -> Any:
        if not is_sealed(Path(self._data_path(name)).read_bytes()):
            raise OSError(f"{name} is torn")  # numba compiles anew, and writes the file again
        return super()._load_data(name)


def is_sealed(data: bytes) -> bool:
    return hashlib.sha256(data[:-DIGEST_SIZE]).digest() == data[-DIGEST_SIZE:]


@intrinsic
def use_wide_vectors(typing_context):
    """Ask LLVM for 512-bit vectors in the function that calls this; it prefers 256 where it might cost clock rate.

    At 256 x 1000 the sigmoid kernel takes 0.8 of the time so. Processors without AVX-512 are not concerned.
    """

    def generate(context, builder, signature, arguments):
        # llvmlite has no word for this attribute, so its check of words is passed by.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def nonzero_marks(typing_context, row, first):
    """64 bits that say which of row[first : first + 64], float32, are not 0; NaN is not."""

    def generate(context, builder, signature, arguments):
        vector = ir.VectorType(ir.FloatType(), 64)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        values = builder.load(builder.bitcast(builder.gep(data, [arguments[1]]), vector.as_pointer()), align=4)
        return builder.bitcast(builder.fcmp_unordered("!=", values, ir.Constant(vector, [0.0] * 64)), ir.IntType(64))

    return types.uint64(row, types.intp), generate


@intrinsic
def lowest_mark(typing_context, marks):
    """The number of the lowest bit that is 1; there must be one."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


LINE = 16  # float32 numbers that come into the cache together


def prefetching(will_write: bool) -> Any:
    @intrinsic
    def prefetch(typing_context, array, index):
        """Ask for the line of the cache that array[index] is in, and go on."""

        def generate(context, builder, signature, arguments):
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
            number = ir.IntType(32)
            function = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
            llvm = builder.module.declare_intrinsic("llvm.prefetch", [address.type], function)
            builder.call(llvm, [address, number(int(will_write)), number(2), number(1)])  # second-level cache, data
            return context.get_dummy_value()

        return types.void(array, types.intp), generate

    return prefetch


prefetch, prefetch_for_writing = prefetching(False), prefetching(True)


@inlined
def fetch(array, start, count):
    """Ask for so many numbers from array[start] on, as far as they are there: they come while others are computed."""
    for k in range(start, min(start + count, len(array)), LINE):
        prefetch(array, k)


@inlined
def fetch_for_writing(array, start, count):
    for k in range(start, min(start + count, len(array)), LINE):
        prefetch_for_writing(array, k)
