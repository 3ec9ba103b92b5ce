"""Figure 3: minima of the normalized UFM found by gradient descent, against Theorem 1."""

import functools

import ufm_jax as ufm
from experiments import minima
from experiments.experiment import Experiment

SETTING = minima.Setting(
    problem=lambda config, labels, num_classes, tau: ufm.normalized(labels, num_classes, tau=tau),
    minimum=lambda config, num_classes, tau: ufm.theory.cross_entropy_minimum(num_classes, tau),
    solver=ufm.solvers.gradient_descent(),
    title="Cross entropy, normalized UFM",
    theory="the minimum of Theorem 1",
)

EXPERIMENT = Experiment(
    name="fig3",
    title="cross entropy: found minima against Theorem 1, over K and over tau",
    duration="about 30 s",
    config=minima.Config,
    check=minima.check,
    run=functools.partial(minima.run, SETTING),
    claims=functools.partial(minima.claims, SETTING),
    plot=functools.partial(minima.plot, SETTING),
)
