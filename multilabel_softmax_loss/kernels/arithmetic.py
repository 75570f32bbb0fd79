"""Exponentials, logarithms and sigmoids without branches, so that LLVM makes SIMD loops of them."""

from __future__ import annotations

import math
from typing import List

import numpy as np

from .compiling import inlined, summing, use_wide_vectors

LOG2_E = 1 / math.log(2)
LN_2 = math.log(2)
ROUND = 1.5 * 2.0**52  # added to a double it leaves the nearest integer in the low bits

ZERO, ONE = np.float32(0), np.float32(1)
HALF_ROOT_BITS = int(np.float64(math.sqrt(0.5)).view(np.int64))
MANTISSA = (1 << 52) - 1
MAGNITUDE = np.int32(0x7FFFFFFF)  # the bits of a float32 but for its sign
SIGN_SHIFT = np.int32(31)
EXPONENT_SHIFT = np.int32(23)
LOG2_E_32, LN_2_32 = np.float32(LOG2_E), np.float32(0.693359375)  # the latter times an integer is exact
LN_2_REST = np.float32(LN_2 - 0.693359375)
ROUND_32 = np.float32(1.5 * 2**23)
ONE_BITS = np.int32(ONE.view(np.int32))


def exp_polynomial(degree: int) -> list:
    """c with exp(r) = 1 + r (c_0 + c_1 r + ...) on [-ln(2)/2, ln(2)/2]: 3e-12 relative for degree 7, 2e-9 for 5."""
    half = LN_2 / 2
    chebyshev = np.polynomial.chebyshev
    series = chebyshev.cheb2poly(chebyshev.chebinterpolate(lambda x: np.expm1(x * half) / (x * half), degree))
    return [float(c) for c in series / half ** np.arange(degree + 1)]


C0, C1, C2, C3, C4, C5, C6, C7 = exp_polynomial(7)
_, B1, B2, B3, B4, B5 = (np.float32(c) for c in exp_polynomial(5))


def arctanh_polynomial(highest: float, degree: int) -> List[float]:
    """c with arctanh(u) = u (1 + u^2 (c_0 + c_1 u^2 + ...)) for u up to `highest`."""
    chebyshev = np.polynomial.chebyshev
    square = highest**2 / 2  # u^2 is between 0 and twice this; x between -1 and 1

    def rest(x: np.ndarray) -> np.ndarray:
        u = np.sqrt(square * (1 + x))
        return (np.arctanh(u) / u - 1) / u**2

    series = np.polynomial.Polynomial(chebyshev.cheb2poly(chebyshev.chebinterpolate(rest, degree)))
    return [float(c) for c in series(np.polynomial.Polynomial([-1, 1 / square])).coef]


# log(1 + e) = 2 arctanh(u), u = e / (2 + e) <= 1/3, to 1e-12 relative.
D0, D1, D2, D3, D4, D5, D6, D7 = arctanh_polynomial(1 / 3, 7)
# log(m) = 2 arctanh(u), u = (m - 1) / (m + 1), sqrt(1/2) <= m < sqrt(2), to 1e-13.
E0, E1, E2, E3, E4, E5 = arctanh_polynomial((math.sqrt(2) - 1) ** 2, 5)


@inlined
def exp(x):
    """e^x of a double within +-700. NaN stays NaN."""
    shifted = x * LOG2_E + ROUND
    r = x - (shifted - ROUND) * LN_2
    power = 1.0 + r * (C0 + r * (C1 + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * (C6 + r * C7)))))))
    return np.int64(np.float64(power).view(np.int64) + (np.float64(shifted).view(np.int64) << 52)).view(np.float64)


@inlined
def exp_negative(x):
    """e^x of a double that is not above 0; below -700 it is e^-700, which is nothing beside 1. NaN stays NaN."""
    return exp(-700.0 if x < -700.0 else x)


@inlined
def log(x):
    """The natural logarithm of a normal double > 0; what it returns for others means nothing."""
    bits = np.float64(x).view(np.int64) - HALF_ROOT_BITS
    whole = bits >> 52
    m = np.int64((bits & MANTISSA) + HALF_ROOT_BITS).view(np.float64)
    u = (m - 1.0) / (m + 1.0)
    v = u * u
    arctanh = u + u * v * (E0 + v * (E1 + v * (E2 + v * (E3 + v * (E4 + v * E5)))))
    return whole * LN_2 + 2.0 * arctanh


@inlined
def log1p(x):
    """log(1 + x) of a double >= 0 with all its digits, also where 1 + x loses some of x; NaN for NaN and infinity."""
    y = 1.0 + x
    return log(y) + (x - (y - 1.0)) / y


@inlined
def minus_log_rest(a, b, inverse):
    """-log(1 - a) with all its digits, for 0 < a < 1, from its rounded b = 1 - a and 1 / b."""
    return -log(b) - ((1.0 - b) - a) * inverse


@inlined
def power_32(x):
    """e^x - 1 after x has lost a whole number of ln 2, and that number, in the low bits of a float32."""
    shifted = x * LOG2_E_32 + ROUND_32
    whole = shifted - ROUND_32
    r = x - whole * LN_2_32
    r = r - whole * LN_2_REST
    return r + r * r * (B1 + r * (B2 + r * (B3 + r * (B4 + r * B5)))), shifted


@inlined
def exp_32(x, unit):
    """e^x / 2^unit in float32, to 1.1 ulp, while that is from 2^-126 to 2, and |x| below 300; NaN stays NaN."""
    power, shifted = power_32(x)
    bits = np.float32(shifted - unit).view(np.int32)
    return (ONE + power) * np.int32(ONE_BITS + (bits << EXPONENT_SHIFT)).view(np.float32)


@inlined
def sigmoid_32(x, upper):
    """e^x / (1 + e^x) of a float32 from -64 to 0, to 1 ulp, or 1 minus that if `upper`; and e^x.

    With the errors of three roundings a gradient would miss 2e-7, so what they lose is added to the quotient.
    """
    power, shifted = power_32(x)
    scale = np.int32(ONE_BITS + (np.float32(shifted).view(np.int32) << EXPONENT_SHIFT)).view(np.float32)
    whole = ONE + power
    e, e_rest = whole * scale, (power - (whole - ONE)) * scale
    d = ONE + e
    d_rest = e - (d - ONE) + e_rest
    q = e / d
    q += (e - q * d + (e_rest - q * d_rest)) * (ONE - q)  # 1 / (1 + e) is 1 - q
    return ONE - q if upper else q, e


@inlined
def rank(score):
    """A float32 as a whole number of the same order, NaN on top or at the bottom; a maximum of floats takes no SIMD."""
    bits = np.float32(score).view(np.int32)
    return np.int32(bits ^ ((bits >> SIGN_SHIFT) & MAGNITUDE))


@inlined
def of_rank(number):
    """The float32 of that rank."""
    return np.int32(number ^ ((number >> SIGN_SHIFT) & MAGNITUDE)).view(np.float32)


LOWEST_RANK = np.int32(np.float32(-np.inf).view(np.int32) ^ MAGNITUDE)


@inlined
def farthest_of(farthest, score):
    """The largest size of a score so far, as the bits of a float32; those have its order, NaN on top."""
    return np.int32(max(farthest, np.float32(score).view(np.int32) & MAGNITUDE))


@inlined
def signs_of(signs, x):
    """The sign bits met so far; as float32 has its sign, so has int32."""
    return np.int32(signs | np.float32(x).view(np.int32))


@summing
def sum_of(values):
    """The sum of float32 numbers as a double. In float32 even the few roundings of SIMD lanes would show."""
    use_wide_vectors()
    total = 0.0
    for k in range(len(values)):
        total += values[k]
    return total


@inlined
def log_sigmoids(score):
    """-log p, -log q, p and q of a score, with p its sigmoid and q = 1 - p; NaN for NaN."""
    s = np.float64(score)
    e = exp_negative(-abs(s))
    inverse = 1 / ((1 + e) * (2 + e))  # one division for both of 1 / (1 + e) and e / (2 + e)
    larger = (2 + e) * inverse
    smaller = e * larger
    u = e * (1 + e) * inverse
    v = u * u
    log1p_e = 2 * u * (1 + v * (D0 + v * (D1 + v * (D2 + v * (D3 + v * (D4 + v * (D5 + v * (D6 + v * D7))))))))
    positive = s > 0
    return (
        log1p_e + (0.0 if positive else -s),
        log1p_e + (s if positive else 0.0),
        larger if positive else smaller,
        smaller if positive else larger,
    )


@inlined
def power(cost, gamma):
    """p^gamma from -log p."""
    x = -gamma * cost
    result = exp_negative(x)
    return 0.0 if x < -700.0 else result
