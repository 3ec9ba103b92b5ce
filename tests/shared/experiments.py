"""The smallest run of each experiment."""

_SIZES = ["--num_classes", "3", "--samples_per_class", "2", "--dim", "6", "--trials", "3"]
_MINIMA = ["--num_classes", "2", "4", "--tau", "0.5", "5", "--trials", "2", "--dim", "6"]
_DESCENT = ["--num_classes", "3", "--samples_per_class", "2", "--dim", "6", "--trials", "2", "--steps", "6"]
_NETWORK = ["--scale", "paper", "--dataset", "synthetic", "--samples_per_class", "6", "--batch_size", "60"]
_NETWORK += ["--epochs", "2", "--trials", "1", "--width", "4"]
_COMPARISON = [*_NETWORK, "--architecture", "resnet18", "--variant", "released"]
_BENCH = [*_SIZES, "--steps", "3", "--rounds", "1", "--grid_trials", "1", "--grid_steps", "3"]
_BENCH += ["--factors", "1"]
_BENCH_NETWORKS = [
    "--width",
    "4",
    "--image_size",
    "8",
    "--batch_size",
    "16",
    "--rounds",
    "1",
    "--epochs",
    "2",
]
LANDSCAPE = ["--num_classes", "3", "--samples_per_class", "3", "--dim", "5", "--imbalance", "0"]
_BENCH_SOLVERS = ["--num_classes", "3", "--samples_per_class", "2", "--dim", "4", "--rounds", "1"]
SMALL = {
    "fig4": [*_NETWORK, "5"],
    **dict.fromkeys(["fig6", "table2"], _COMPARISON),
    "fig10": [*_NETWORK, "--tau", "0.5", "5"],
    "bench": _BENCH,
    "bench-networks": _BENCH_NETWORKS,
    "bench-metrics": [
        *["--num_classes", "40", "--dim", "8", "--rounds", "1"],
        *["--words", "30", "--samples_per_word", "4", "--word_dim", "8"],
    ],
    "bench-solvers": _BENCH_SOLVERS,
    "fig5-start": [*_DESCENT, "--start_scale", "0.3", "1"],
    **dict.fromkeys(["fig5", "fig5-lbfgs", "fig7", "fig8"], _DESCENT),
    **dict.fromkeys(["fig3", "fig11", "fig12", "fig13"], _MINIMA),
    "landscape": [*LANDSCAPE, "--tau", "0.5", "2", "--trials", "2"],
    "landscape-window": ["--trials", "2", "--steps", "60", "--points", "5"],
    "landscape-conditions": ["--num_classes", "3", "--dim", "3", "--tau", "1", "--trials", "2"],
    "softmax-codes": ["--num_classes", "4", "5", "--dim", "2", "3", "--tau", "1", "32", "--trials", "2"],
    "focal-map": ["--num_classes", "4", "--resolution", "5", "--tau", "1", "--trials", "2"],
    "rates": ["--num_classes", "4", "--samples_per_class", "2", "--steps", "600"],
    "temperature": ["--num_classes", "4", "--dim", "6", "--tau", "0.5", "1", "2", "--trials", "1"],
    "metric": [
        *["--num_classes", "4", "--samples_per_class", "3", "--dim", "6", "--trials", "1", "--steps", "20"],
        *["--decay", "1e-2", "1e-4", "--local_decay", "1e-2", "1e-4", "1e-6"],
    ],
    "class-sizes": ["--samples_per_class", "4", "2", "1", "--dim", "4", "--trials", "1", "--steps", "500"],
    "regularized-minima": [
        *["--num_classes", "3", "--samples_per_class", "4", "--decay", "1e-2", "0.1"],
        *["--decay_ratio", "1", "--trials", "1", "--steps", "100"],
    ],
    "minority-collapse": [
        *["--large_size", "6", "--small_size", "2", "--share", "0.5", "1.5", "--trials", "1"],
    ],
    "deep": [
        *["--factors", "2", "3", "--num_classes", "3", "--width", "4", "--trials", "1", "--steps", "200"],
    ],
    "optimizers": [
        *["--num_classes", "3", "--dim", "4", "--decay", "5e-3", "--adamw_decay", "0.5"],
        *["--trials", "1", "--steps", "300"],
    ],
    "fig9": ["--tau", "0.5", "5", *_SIZES, "--steps", "12"],
    "large": ["--num_classes", "4", "--samples_per_class", "6", "--dim", "5", "--block_size", "5"],
}


SLOW = (
    "bench",
    "bench-metrics",
    "bench-networks",
    "bench-solvers",
    "fig3",
    "fig4",
    "fig5-lbfgs",
    "fig5-start",
    "fig6",
    "fig7",
    "fig8",
    "fig10",
    "fig11",
    "fig12",
    "fig13",
    "class-sizes",
    "deep",
    "focal-map",
    "landscape",
    "landscape-conditions",
    "landscape-window",
    "large",
    "metric",
    "minority-collapse",
    "optimizers",
    "rates",
    "regularized-minima",
    "softmax-codes",
    "table2",
    "temperature",
)
"""Experiments whose smallest run is long, or differs from another one only in a solver or a loss."""
