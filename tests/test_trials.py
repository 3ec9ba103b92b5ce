import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm_jax as ufm

LABELS = ufm.balanced_labels(4, 3)


def trial(tau, key):
    problem = ufm.normalized(LABELS, 4, tau=tau)
    point = problem.random_point(key, 6)
    result = ufm.minimize(problem, point, ufm.solvers.gradient_descent(), max_steps=8, tolerance=0.0)
    return {"value": result.value, "W": result.point.W}


TAU = np.array([0.5, 1.0, 5.0])
KEYS = jax.random.split(jax.random.key(0), 5)


def test_a_grid_is_every_combination_in_order():
    data = ufm.trials.grid(trial, {"tau": TAU, "key": KEYS})
    assert data["value"].shape == (3, 5)
    assert data["W"].shape == (3, 5, 4, 6)
    for i, j in [(0, 0), (1, 4), (2, 2)]:
        alone = trial(TAU[i], KEYS[j])
        np.testing.assert_allclose(data["value"][i, j], alone["value"], rtol=1e-12)
        np.testing.assert_allclose(data["W"][i, j], alone["W"], atol=1e-10)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("devices", [1, 2])
def test_no_way_of_running_changes_the_result(batch_size, devices):
    expected = ufm.trials.grid(trial, {"tau": TAU, "key": KEYS}, devices=jax.local_devices()[:1])
    data = ufm.trials.grid(
        trial, {"tau": TAU, "key": KEYS}, batch_size=batch_size, devices=jax.local_devices()[:devices]
    )
    if batch_size == 1:
        jax.tree.map(np.testing.assert_array_equal, data, expected)
    else:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), data, expected)


def test_axes_may_be_pytrees():
    points = {"W": jnp.arange(6.0).reshape(3, 2), "b": jnp.arange(3.0)}
    data = ufm.trials.grid(
        lambda point, scale: scale * jnp.sum(point["W"]) + point["b"],
        {"scale": np.array([1.0, 10.0]), "point": points},
    )
    np.testing.assert_array_equal(data, [[1, 6, 11], [10, 51, 92]])


def test_an_axis_may_be_points():
    problem = ufm.normalized(LABELS, 4)
    points = jax.vmap(lambda key: problem.random_point(key, 6))(KEYS)

    def cost(tau, start):
        return ufm.normalized(LABELS, 4, tau=tau).cost(start)

    data = ufm.trials.grid(cost, {"tau": [0.5, 1.0], "start": points})
    expected = [cost(t, jax.tree.map(lambda x: x[2], points)) for t in (0.5, 1.0)]
    np.testing.assert_allclose(data[:, 2], expected, rtol=1e-12)


def test_a_second_call_of_a_grid_finds_it_compiled():
    traced = []

    def square(x):
        traced.append(x)
        return x**2

    for _ in range(2):
        ufm.trials.grid(square, {"x": TAU})
    assert len(traced) == 1


def test_progress_counts_up_to_all_trials():
    seen = []
    ufm.trials.run(lambda x: x + 1, np.arange(101.0), progress=lambda *state: seen.append(state))
    assert seen[0] == (0, 101)
    assert seen[-1] == (101, 101)
    assert seen == sorted(seen)
    assert 10 < len(seen) <= 22


def test_every_chunk_has_one_shape_and_compiles_once():
    traces = []

    def counted(x):
        traces.append(x.shape)
        return 2 * x

    data = ufm.trials.run(counted, np.arange(103.0))
    np.testing.assert_array_equal(data, 2 * np.arange(103.0))
    assert len(traces) == 1


def test_batches_are_cut_to_the_memory_that_is_allowed():
    one = np.ones((1000, 8, 8))

    def product(x):
        return jnp.linalg.norm(x @ x)

    bytes_of_one = ufm.trials._bytes_of_a_trial(product, one[0])
    assert 8 * 64 <= bytes_of_one <= 8 * 64 * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axes": {"tau": np.zeros((0,)), "key": KEYS}}, "the length of axis 'tau' must be"),
        ({"axes": {"tau": TAU, "key": KEYS}, "batch_size": 0}, "batch_size must be finite and at least 1"),
        ({"axes": {"tau": TAU, "key": KEYS}, "memory": 0}, "memory must be finite and at least 1"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        ufm.trials.grid(trial, **arguments)


class Stopped(Exception):
    pass


def stopping_after(chunks):
    """A progress function that stops the sweep when so many chunks are finished."""
    seen = []

    def progress(done, total):
        seen.append(done)
        if len(seen) > chunks:
            raise Stopped

    return progress


def test_a_stopped_sweep_continues_on_another_number_of_devices():
    axes = {"tau": TAU, "key": KEYS}
    whole = ufm.trials.grid(trial, axes)
    store: dict = {}
    for devices, chunks in [(1, 3), (2, 2)]:
        own = jax.local_devices()[:devices]
        with pytest.raises(Stopped):
            ufm.trials.grid(trial, axes, devices=own, progress=stopping_after(chunks), store=store)
    assert len(store) == 5
    progress = []
    found = ufm.trials.grid(trial, axes, progress=lambda *state: progress.append(state), store=store)
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    assert progress[0] == (3 * 1 + 2 * 2, 15)
    trials = np.concatenate([chunk["trials"] for chunk in store.values()])
    np.testing.assert_array_equal(np.sort(trials), np.arange(15))


def test_what_a_store_holds_is_not_run_again():
    store: dict = {}
    inputs = np.arange(50.0)
    ufm.trials.run(jnp.square, inputs, store=store)
    store["0-3"] |= {"output": np.array([0, 1, -1, 9.0])}
    found = ufm.trials.run(jnp.square, inputs, store=store)
    np.testing.assert_array_equal(found, np.where(inputs == 2, -1, inputs**2))


@pytest.mark.parametrize("other", ["inputs", "outputs"])
def test_a_store_of_another_grid_is_refused(other):
    store: dict = {}
    keys = jax.random.split(jax.random.key(1), 3)
    ufm.trials.run(jax.random.normal, keys, store=store)
    trial = jax.random.normal if other == "inputs" else lambda key: jax.random.normal(key, (2,))
    inputs = keys[::-1] if other == "inputs" else keys
    with pytest.raises(ValueError, match="store must be empty or hold chunks of this grid"):
        ufm.trials.run(trial, inputs, store=store)


def test_a_sweep_compiles_its_trial_once():
    compiled = []

    def note(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details["fun_name"])

    def sweep():
        compiled.clear()
        ufm.trials.grid(value, {"tau": TAU, "key": KEYS}, store={})
        return list(compiled)

    def value(tau, key):
        return trial(tau, key)["value"]

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        assert sum("on_one_device" in name for name in sweep()) == 1
        assert sweep() == []
    finally:
        jax.monitoring.clear_event_listeners()


def test_float64_is_refused_on_a_tpu():
    refuse = ufm.trials._checks.no_float64_on_tpu
    refuse("tpu", {"tau": np.float32([1]), "key": KEYS})
    refuse("cpu", np.zeros(2))
    with pytest.raises(ValueError, match="a TPU has no float64"):
        refuse("tpu", {"tau": np.float32([1]), "value": jax.ShapeDtypeStruct((3,), np.float64)})
