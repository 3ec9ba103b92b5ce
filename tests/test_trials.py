import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm_jax as ufm
from tests.shared.marks import few

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


@pytest.mark.parametrize("batch_size", few(1, 4, 1, 100))
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


def test_an_axis_may_be_a_list_of_keys_or_arrays():
    axes = {"key": list(KEYS[:2]), "x": [np.arange(2.0), np.ones(2)], "scale": (1, 2)}
    data = ufm.trials.grid(lambda key, x, scale: scale * x + jax.random.uniform(key), axes)
    assert data.shape == (2, 2, 2, 2)
    np.testing.assert_allclose(data[1, 0, 1], 2 * np.arange(2.0) + jax.random.uniform(KEYS[1]), rtol=1e-6)


@given(lengths=st.lists(st.integers(0, 3), min_size=1, max_size=4), place=st.integers(0, 1))
@settings(deadline=None, max_examples=30)
def test_arrays_of_unequal_lengths_are_never_cut_or_repeated(lengths, place):
    """Of every number of arrays, in the first axis or in the second, and of `run`."""
    arrays = [np.arange(float(n)) for n in lengths]
    axes = {"p": arrays[0] if len(arrays) == 1 else dict(enumerate(arrays)), "q": np.ones(1)}
    axes = dict(list(axes.items())[:: 1 if place == 0 else -1])
    if len(set(lengths)) == 1 and lengths[0] > 0:
        found = ufm.trials.grid(lambda p, q: q * sum(jax.tree.leaves(p)), axes)
        np.testing.assert_array_equal(found.ravel(), len(lengths) * arrays[0])
        return
    for call in (lambda: ufm.trials.grid(trial, axes), lambda: ufm.trials.run(trial, axes["p"])):
        with pytest.raises(ValueError, match=f"must have one length.* {', '.join(map(str, lengths))}"):
            call()


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
    for memory, batch_size in [(10 * bytes_of_one, 10), (bytes_of_one // 2, 1)]:
        assert ufm.trials._batch_size("gpu", memory, product, one) == batch_size
        assert ufm.trials._batch_size("cpu", memory, product, one) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"axes": {"tau": np.zeros((0,)), "key": KEYS}},
            "the arrays of axis 'tau' must have one length, at least 1, but have the lengths 0",
        ),
        (
            {"axes": {"p": {"a": np.arange(3.0), "b": np.arange(2.0)}}},
            "the arrays of axis 'p' must have one length, at least 1, but have the lengths 3, 2",
        ),
        ({"axes": {"p": {"a": np.arange(2.0), "b": np.arange(3.0)}}}, "axis 'p' .* have the lengths 2, 3"),
        ({"axes": {"tau": 1.0}}, r"axis 'tau' must hold its values along the leading axis .* \[\(\)\]"),
        ({"axes": {"key": jax.random.key(0)}}, "axis 'key' must hold its values along the leading axis"),
        ({"axes": {"p": {"a": [1.0, 2.0]}}}, "axis 'p' must hold its values along the leading axis"),
        ({"axes": {"p": {}}}, r"axis 'p' must hold its values .* the shapes \[\]"),
        ({"axes": {}}, "axes must name an argument of the trial"),
        (
            {"axes": {"p": [{"a": 1.0}, {"a": 2.0}]}},
            "axis 'p' must be a list of .* a list of pytrees is stacked",
        ),
        ({"axes": {"p": ["a", "b"]}}, "axis 'p' must be a list of alike numbers or keys"),
        ({"axes": {"p": [[1.0, 2.0], [3.0]]}}, "axis 'p' must be a list of alike numbers or keys"),
        ({"axes": {"key": [jax.random.key(0), 1.0]}}, "axis 'key' must be a list of alike numbers or keys"),
        ({"axes": {"tau": TAU, "key": KEYS}, "devices": []}, "devices must be one at least"),
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


def test_integers_that_jax_would_wrap_are_refused():
    with jax.enable_x64(False):
        for call in (
            lambda seeds: ufm.trials.grid(lambda seed: seed, {"seed": seeds}),
            lambda seeds: ufm.trials.run(lambda seed: seed, np.asarray(seeds)),
        ):
            with pytest.raises(ValueError, match=r"integers that int32 can hold, but .* 4294967296"):
                call([0, 2**32, 1])
            np.testing.assert_array_equal(call([0, 2**31 - 1]), [0, 2**31 - 1])


def test_a_store_of_something_else_is_refused():
    with pytest.raises(ValueError, match="store must be empty or hold chunks of this grid"):
        ufm.trials.run(jnp.square, np.arange(3.0), store={"0-2": {"x": np.zeros(3)}})


def test_trials_run_where_the_caller_has_set_a_mesh():
    with jax.set_mesh(jax.make_mesh((2,), ("x",), devices=jax.local_devices()[:2])):
        found = ufm.trials.run(lambda x: 2 * x, jnp.arange(5.0))
    np.testing.assert_array_equal(found, [0, 2, 4, 6, 8])


def test_a_trial_may_be_an_object_without_a_hash():
    @dataclasses.dataclass
    class Scaling:
        factor: float

        def __call__(self, x):
            return self.factor * x

    np.testing.assert_array_equal(ufm.trials.grid(Scaling(3.0), {"x": [1.0, 2.0]}), [3, 6])


@dataclasses.dataclass(frozen=True)
class Scaled:
    by: jax.Array

    def __call__(self, x):
        return self.by * x


def test_a_frozen_dataclass_that_holds_an_array_is_a_trial():
    found = ufm.trials.grid(Scaled(jnp.array(2.0)), {"x": np.arange(3.0)})
    np.testing.assert_array_equal(found, [0, 2, 4])
