"""The focal certificate over tau and gamma, and a search for lower values where it is silent."""

import dataclasses

import jax
import numpy as np
from matplotlib.figure import Figure

import ufm_jax as ufm
from experiments.harness import chunks
from experiments.harness.experiment import Claim, Data, Progress, UfmConfig, check_fields, check_float64

TITLE = "focal loss: where collapse is proved optimal"
DURATION = "30 s"


@dataclasses.dataclass(frozen=True)
class Config(UfmConfig):
    """Maps of the tangent test for several K, and random starts on a coarse grid inside them."""

    num_classes: tuple[int, ...] = (10, 30, 100)
    """Numbers of classes, K, one map each; d = K and n = 1 in the search."""
    resolution: int = 200
    """Temperatures, and values of gamma, of a map."""
    tau: tuple[float, ...] = (0.2, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    """Temperatures of the search."""
    gamma: tuple[float, ...] = (1.0, 3.0, 5.0)
    """Focusing parameters of the search."""
    trials: int = 4
    """Random starts at each searched setting."""
    steps: int = 2000
    """Most iterations of gradient descent in a trial."""


def check(config: Config) -> None:
    lowest = {"num_classes": 2, "resolution": 2, "trials": 1, "steps": 1, "gamma": 0}
    check_fields(config, lowest, positive=["tau"])
    check_float64(config, "values agree to 1e-12")


def run(config: Config, progress: Progress, store: chunks.ChunkFolder | None = None) -> Data:
    map_tau = np.geomspace(0.1, 50, config.resolution)
    map_gamma = np.linspace(0, 6, config.resolution)
    test = ufm.theory.focal_is_optimal_at_collapse
    keys = jax.random.split(jax.random.key(config.seed), config.trials)
    tau, gamma = np.asarray(config.tau, config.dtype), np.asarray(config.gamma, config.dtype)
    axes = {"tau": tau, "gamma": gamma, "key": keys}
    certified, searched, excess = [], [], []
    for i, K in enumerate(config.num_classes):
        progress(i, len(config.num_classes))

        def trial(tau, gamma, key, K=K):
            problem = ufm.normalized(
                ufm.balanced_labels(K, 1),
                K,
                loss=lambda logits, labels: ufm.losses.focal(logits, labels, gamma),
                tau=tau,
            )
            start = problem.random_point(key, K, config.dtype)
            solver = ufm.solvers.gradient_descent()
            found = ufm.minimize(problem, start, solver, max_steps=config.steps, tolerance=1e-9)
            return found.value - ufm.theory.focal_at_collapse(K, tau, gamma)

        certified.append(np.asarray(test(K, map_tau, map_gamma[:, None])))
        searched.append(np.asarray(test(K, tau[:, None], gamma)))
        excess.append(ufm.trials.grid(trial, axes, store=chunks.part(store, str(i))))
    progress(1, 1)
    return {
        "map_tau": map_tau,
        "map_gamma": map_gamma,
        "certified": np.stack(certified),
        "num_classes": np.asarray(config.num_classes),
        "tau": tau,
        "gamma": gamma,
        "searched_certified": np.stack(searched),
        "excess": np.stack(excess),
    }


def claims(config: Config, data: Data) -> list[Claim]:
    silent = 1 - data["certified"].mean((1, 2))
    excess = data["excess"]
    lowest, largest = excess.min(), excess.max()
    in_silence = excess[~data["searched_certified"]]
    judged = [
        Claim(
            "no value found is below collapse, where the tangent test holds"
            + (" or where it is silent" if in_silence.size else ""),
            bool(lowest >= -1e-12),
            f"lowest found-minus-collapse {lowest:.2g} in {excess.size} trials, {in_silence.size} of them "
            "where it is silent",
        ),
        Claim(
            "every random start ends at collapse's value, to 1e-6",
            bool(largest <= 1e-6),
            f"largest found-minus-collapse {largest:.2g}",
        ),
    ]
    few = data["num_classes"] <= 10
    if few.any():
        judged.append(
            Claim(
                "the tangent test holds on the whole map up to K = 10",
                bool(np.all(silent[few] == 0)),
                "silent on "
                + ", ".join(
                    f"{share:.0%} of the map at K = {K}"
                    for K, share in zip(config.num_classes, silent, strict=True)
                ),
            )
        )
    return judged


def plot(config: Config, data: Data) -> Figure:
    figure = Figure(figsize=(3.2 * len(config.num_classes), 3.3))
    panels = figure.subplots(1, len(config.num_classes), sharey=True, squeeze=False)[0]
    for i, (axes, K) in enumerate(zip(panels, config.num_classes, strict=True)):
        axes.contourf(
            data["map_tau"],
            data["map_gamma"],
            data["certified"][i].astype(float),
            levels=[-0.5, 0.5, 1.5],
            colors=["#dddddd", "#8fbfe0"],
        )
        lowest = data["excess"][i].min(-1)
        tau, gamma = np.meshgrid(data["tau"], data["gamma"], indexing="ij")
        for marker, words, chosen in [
            ("ok", "best found equals collapse", lowest >= -1e-10),
            ("xr", "found below collapse", lowest < -1e-10),
        ]:
            axes.plot(tau[chosen], gamma[chosen], marker, markersize=4, label=words)
        axes.set(xscale="log", title=f"$K = {K}$", xlabel=r"temperature $\tau$")
        axes.grid(False)
    panels[0].set_ylabel(r"focusing parameter $\gamma$")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle("tangent test: blue, collapse proved optimal; gray, silent", fontsize=10)
    return figure
