"""Regularized models as NumPy formulas, minimized by SciPy."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax


def mean_loss(name, logits, Y, alpha=0.0):
    """The mean loss and its gradient in the logits."""
    count, k = Y.shape
    if name == "squared error":
        return np.sum((logits - Y) ** 2) / (2 * count), (logits - Y) / count
    targets = (1 - alpha) * Y + alpha / k
    value = np.mean(logsumexp(logits, axis=1) - np.sum(targets * logits, 1))
    return value, (softmax(logits, axis=1) - targets) / count


def solve(Y, dim, lW, lH, name, seed, *, alpha=0.0, bias=False, nonnegative=False, tries=1, bias_decay=0.0):
    """The lowest value that SciPy finds from random starts, with W, H and b."""
    (count, k), best = Y.shape, None
    sizes = np.cumsum([k * dim, count * dim])

    def parts(x):
        W, H, b = np.split(x, sizes)
        return W.reshape(k, dim), H.reshape(count, dim), b

    def cost(x):
        W, H, b = parts(x)
        value, G = mean_loss(name, H @ W.T + (b if bias else 0), Y, alpha)
        value += lW / 2 * np.sum(W**2) + lH / 2 * np.sum(H**2) + bias_decay / 2 * np.sum(b**2)
        slope = G.sum(0) + bias_decay * b if bias else np.zeros(k)
        return value, np.concatenate([(G.T @ H + lW * W).ravel(), (G @ W + lH * H).ravel(), slope])

    generator = np.random.default_rng(seed)
    bounds = None
    if nonnegative:
        bounds = [(None, None)] * (k * dim) + [(0, None)] * (count * dim) + [(None, None)] * k
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 30}
    for _ in range(tries):
        start = generator.normal(size=sizes[-1] + k)
        if nonnegative:
            start = np.abs(start)
        if not bias:
            start[sizes[-1] :] = 0
        found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        best = found if best is None or found.fun < best.fun else best
    return best.fun, *parts(best.x)


def one_hot(sizes):
    return np.repeat(np.eye(len(sizes)), sizes, axis=0)
