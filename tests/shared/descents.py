"""Problems on which solvers are held against pymanopt."""

import jax

import ufm_jax as ufm

K, N_PER_CLASS, DIM = 10, 5, 32
LABELS = ufm.balanced_labels(K, N_PER_CLASS)
PROBLEMS = {
    **{f"normalized, tau={tau}": ufm.normalized(LABELS, K, tau=tau) for tau in (0.5, 1.0, 5.0)},
    "regularized": ufm.regularized(LABELS, K),
}


def costs_of(problem, point, solver, steps):
    return jax.jit(
        lambda x: ufm.minimize(problem, x, solver, max_steps=steps, tolerance=0.0, measure=problem.cost)
    )(point).history
