"""The example of sparse agents: eight of them, each with masks of its own."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj

PATH = pathlib.Path(__file__).parent.parent / "examples/ppo_sparse.py"
SPEC = importlib.util.spec_from_file_location("ppo_sparse", PATH)
ppo_sparse = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ppo_sparse)

pytestmark = pytest.mark.usefixtures("promoted")


@pytest.fixture
def promoted():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_a_pole_falls_the_way_it_leans_and_a_new_episode_starts():
    key, environment = jax.random.key(0), (jnp.array([0.0, 0.0, 0.1, 0.0]), jnp.int32(3))
    (state, time), over, length = ppo_sparse.step_environment(key, environment, 0)
    assert not over and length == 0 and time == 4
    assert state[1] < 0 < state[3]  # the cart goes left, the pole tips to the right
    fallen = jnp.array([0.0, 0.0, 0.3, 0.0]), jnp.int32(7)
    (state, time), over, length = ppo_sparse.step_environment(key, fallen, 1)
    assert over and length == 8 and time == 0 and (abs(state) <= 0.05).all()


@pytest.mark.parametrize(
    "methods",
    [
        ("static, ERK",),
        pytest.param(ppo_sparse.METHODS, marks=pytest.mark.long),
    ],
)
def test_agents_train_under_masks_of_their_own(methods, capsys, monkeypatch, tmp_path):
    """The smoke form; that pruned weights stay 0, the example asserts."""
    monkeypatch.setattr(ppo_sparse, "ENVIRONMENTS", 4)
    monkeypatch.setattr(ppo_sparse, "STEPS", 32)
    plot = tmp_path / "curves.png"
    command = ["--updates", "3", "--plot", str(plot), "--methods", *methods]
    curves = ppo_sparse.main(command)
    for name in methods:
        assert curves[name].shape == (8, 3) and bool((curves[name] > 5).all())
        assert len(np.unique(np.asarray(curves[name]), axis=0)) == 8
    biases = 4 * 64 + 2 + 1
    kept = biases + sj.num_kept(4480, 0.1) + sj.num_kept(4416, 0.1)
    assert f"{kept} parameters an agent" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
