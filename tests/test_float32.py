"""How far float32 alone goes: what a TPU can do, in a process without float64."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm_jax as ufm
from ufm_jax import _products

ROOT = Path(__file__).parent.parent
RUN = """
import json, sys
import jax, numpy as np, ufm_jax as ufm
name, sizes, tau, weight = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
num_classes, samples_per_class, dim, steps = sizes
assert not jax.config.jax_enable_x64
labels = ufm.balanced_labels(num_classes, samples_per_class)
problem = ufm.normalized(labels, num_classes, tau=tau, classifier_weight=weight)
solver = getattr(ufm.solvers, name)()
start = problem.random_point(jax.random.key(0), dim)
run = jax.jit(lambda x: ufm.minimize(problem, x, solver, max_steps=steps, tolerance=0.0))
result = run(start)
W, H = result.point
print(json.dumps({
    "dtype": str(W.dtype), "W": np.asarray(W).tolist(), "H": np.asarray(H).tolist(),
    "gradient_norm": float(result.gradient_norm),
    "nc": [float(ufm.metrics.nc2(W)), float(ufm.metrics.nc3(W, H, labels))],
}))
"""


def distance_to_simplex(gram):
    k = len(gram)
    return np.linalg.norm(gram / np.linalg.norm(gram) - (np.eye(k) - 1 / k) / np.sqrt(k - 1))


def gradient_norm(W, H, labels, tau):
    """Of the Riemannian gradient, by NumPy in float64: equations (17) and (18)."""
    scores = tau * H @ W.T
    P = np.exp(scores - scores.max(1, keepdims=True))
    G = P / P.sum(1, keepdims=True)
    G[np.arange(len(H)), labels] -= 1
    norms = []
    for x, g in [(W, tau * G.T @ H / len(H)), (H, tau * G @ W / len(H))]:
        norms.append(np.linalg.norm(g - x * (g * x).sum(1, keepdims=True)))
    return np.hypot(*norms)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [1.0, 5.0])
@pytest.mark.parametrize(
    ("solver", "sizes", "weight"),
    [
        ("gradient_descent", [10, 5, 32, 2000], 1),
        ("conjugate_gradient", [10, 5, 32, 500], 1),
        ("trust_region", [10, 5, 32, 60], 1),
        ("lbfgs", [10, 5, 32, 300], 1),
        ("conjugate_gradient", [100, 30, 128, 1200], 1),
        ("trust_region", [100, 30, 128, 60], 1),
        ("conjugate_gradient", [100, 30, 128, 200], 30),
        ("lbfgs", [100, 30, 128, 200], 30),
    ],
)
def test_float32_alone_collapses(solver, sizes, weight, tau):
    """NC2 and NC3 to 1e-5 and the gradient to 1e-6, measured in float32 and again in float64."""
    arguments = [sys.executable, "-c", RUN, solver, json.dumps(sizes), str(tau), str(weight)]
    output = subprocess.check_output(arguments, text=True, cwd=ROOT)
    found = json.loads(output)
    assert found["dtype"] == "float32"
    W, H = np.array(found["W"]), np.array(found["H"])
    labels = np.repeat(np.arange(sizes[0]), sizes[1])
    means = H.reshape(sizes[0], sizes[1], -1).mean(1) - H.mean(0)
    exact = [distance_to_simplex(W @ W.T), distance_to_simplex(W @ means.T)]
    assert max(exact) < 1e-5
    assert max(found["nc"]) < 1e-5
    np.testing.assert_allclose(found["nc"], exact, atol=1e-6)
    assert found["gradient_norm"] < 1e-6
    assert gradient_norm(W, H, labels, tau) < 1e-6


@pytest.mark.parametrize("rows", [50, 1003])
def test_long_sums_in_float32_keep_their_digits(rows):
    """Rows alike within a class and class after class, where a running sum loses most."""
    generator = np.random.default_rng(0)
    labels = np.arange(rows) * 10 // rows
    a, b = (generator.normal(size=(10, n)).astype(np.float32)[labels] for n in (10, 16))
    found = jax.jit(_products.transposed_matmul)(jnp.asarray(a), jnp.asarray(b))
    expected = a.astype(np.float64).T @ b.astype(np.float64)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert found.dtype == np.float32
    assert error < 2e-7


def test_every_product_asks_for_full_precision():
    """Solvers, metrics and the landscape, as compiled for any device."""
    labels = ufm.balanced_labels(4, 3)
    problem = ufm.normalized(labels, 4)
    point = problem.random_point(jax.random.key(0), 6, jnp.float32)
    programs = [
        lambda x: ufm.minimize(problem, x, ufm.solvers.gradient_descent(), max_steps=2).point,
        lambda x: ufm.minimize(problem, x, ufm.solvers.conjugate_gradient(), max_steps=2).point,
        lambda x: ufm.minimize(problem, x, ufm.solvers.trust_region(), max_steps=2).point,
        lambda x: ufm.landscape.certify(problem, x),
        lambda x: ufm.landscape.negative_curvature(problem, x),
        lambda x: ufm.landscape.smallest_eigenvalue(problem, x, jax.random.key(0)),
        lambda x: ufm.metrics.nc1(x.H, labels, 4) + ufm.metrics.nc3(x.W, x.H, labels),
        lambda x: ufm.streaming.measure(x.W, x.H, labels, 5),
    ]
    for program in programs:
        lines = jax.jit(program).lower(point).as_text().splitlines()
        products = [line for line in lines if "dot_general" in line]
        assert products
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_every_product_of_the_library_goes_through_one_module():
    """Elsewhere it would be rounded to TF32 or bfloat16 on accelerators, and no test on a CPU sees that."""
    names = {"matmul", "dot", "vdot", "einsum", "tensordot", "inner"}
    found = []
    for file in (ROOT / "ufm_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            is_product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
            is_call = (
                isinstance(node, ast.Attribute)
                and node.attr in names
                and isinstance(node.value, ast.Name)
                and node.value.id == "jnp"
            )
            if (is_product or is_call) and file.name != "_products.py":
                found.append(f"{file}:{node.lineno}")
    assert found == []
