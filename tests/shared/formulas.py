"""The metrics by their definitions, in NumPy and SciPy and float64."""

import numpy as np
import scipy.linalg
import scipy.optimize


def reference_nc1(features, labels, k):
    h = np.asarray(features, np.float64)
    mean = h.mean(0)
    within, between = np.zeros((2, h.shape[1], h.shape[1]))
    for c in range(k):
        members = h[labels == c]
        centre = members.mean(0)
        within += (members - centre).T @ (members - centre) / len(h)
        between += np.outer(centre - mean, centre - mean) / k
    return np.trace(within @ scipy.linalg.pinv(between)) / k


def reference_distance(gram):
    k = len(gram)
    return np.linalg.norm(gram / np.linalg.norm(gram) - (np.eye(k) - np.ones((k, k)) / k) / np.sqrt(k - 1))


def reference_nc2(w):
    w = np.asarray(w, np.float64)
    return reference_distance(w @ w.T)


def reference_nc3(w, features, labels):
    h, w = np.asarray(features, np.float64), np.asarray(w, np.float64)
    means = np.stack([h[labels == c].mean(0) for c in range(len(w))]) - h.mean(0)
    return reference_distance(w @ means.T)


def reference_nc4(w, features, labels):
    h, w = np.asarray(features, np.float64), np.asarray(w, np.float64)
    means = np.stack([h[labels == c].mean(0) for c in range(len(w))])
    nearest = np.argmin([[np.linalg.norm(x - m) for m in means] for x in h], axis=1)
    return np.mean(np.argmax(h @ w.T, axis=1) == nearest)


def reference_cdnv(features, labels, k):
    h = np.asarray(features, np.float64)
    parts = [h[labels == c] for c in range(k)]
    means = [part.mean(0) for part in parts]
    variances = [np.mean(np.sum((part - part.mean(0)) ** 2, 1)) for part in parts]
    return np.mean(
        [
            (variances[i] + variances[j]) / (2 * np.sum((means[i] - means[j]) ** 2))
            for i in range(k)
            for j in range(k)
            if i != j
        ]
    )


def reference_distances(w):
    """Distances from convex hulls by SciPy's non-negative least squares: exact up to rounding.

    The point of smallest norm in conv{v_j} is `V^T a / sum(a)` for the a >= 0 that minimizes
    `||V^T a||^2 + (sum(a) - 1)^2`.
    """
    w = np.asarray(w, np.float64)
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    distances = []
    for k in range(len(w)):
        v = np.delete(w, k, 0) - w[k]
        a, _ = scipy.optimize.nnls(np.vstack([v.T, np.ones(len(v))]), np.append(np.zeros(w.shape[1]), 1))
        distances.append(np.linalg.norm(v.T @ a / a.sum()))
    return np.array(distances)


def reference_gnc3(w, features, labels):
    h, w = np.asarray(features, np.float64), np.asarray(w, np.float64)
    means = np.stack([h[labels == c].mean(0) for c in range(len(w))])
    cosines = np.sum(w * means, 1) / np.linalg.norm(w, axis=1) / np.linalg.norm(means, axis=1)
    return np.mean(1 - cosines)
