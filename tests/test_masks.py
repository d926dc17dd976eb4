"""Masks: applying, counting, and files that lose nothing."""

import json
import os
import stat

import flax
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import synflow_jax as sj
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.reductions import count_reaching, count_where
from tests import nets

CPU = Backend(cpu=True, one_device=True)


def test_a_pruned_nan_becomes_zero_and_dtypes_stay():
    params = {
        "a": jnp.array([jnp.nan, 2.0, jnp.inf], jnp.bfloat16),
        "b": jnp.array([3, 4]),
    }
    masks = {"a": jnp.array([False, True, False]), "b": jnp.array([True, False])}
    got = sj.apply_masks(params, masks)
    assert got["a"].dtype == jnp.bfloat16 and got["b"].dtype == jnp.int32
    np.testing.assert_array_equal(got["a"].astype(jnp.float32), [0.0, 2.0, 0.0])
    np.testing.assert_array_equal(got["b"], [3, 0])


def test_apply_masks_names_the_leaf_that_does_not_fit(no_typecheck):
    with pytest.raises(ValueError, match=r"masks\['w'\].*\(3,\).*\(2,\)"):
        sj.apply_masks({"w": jnp.ones(2)}, {"w": jnp.ones(3, bool)})


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1000, 40_003])
def test_counts_agree_with_numpy(size):
    x = np.random.default_rng(size).integers(0, 10, size)
    assert int(count_where(CPU, lambda x: x < 3, jnp.asarray(x))) == (x < 3).sum()
    assert int(sj.count({"x": jnp.asarray(x < 3), "y": jnp.ones((2, 2), bool)})) == (
        (x < 3).sum() + 4
    )


@pytest.mark.parametrize("size", [0, 1, 239, 240, 241, 480, 40_003])
def test_counts_of_several_candidates_agree_with_numpy(size):
    x = np.random.default_rng(size).integers(-5, 10, size).astype(np.int32)
    candidates = np.array([-(2**31), 0, 3, 2**31 - 1], np.int32)
    want = [(x >= c).sum() for c in candidates]
    got = count_reaching(CPU, jnp.asarray(x), jnp.asarray(candidates))
    np.testing.assert_array_equal(got, want)


def test_a_predicate_may_read_several_leaves():
    x, y = jnp.arange(100), jnp.arange(100)[::-1]
    assert int(count_where(CPU, lambda a, b: a > b, x, y)) == 50


trees = st.recursive(
    hnp.arrays(bool, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@hypothesis.given(tree=trees)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_masks_come_back_from_a_file(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("masks") / "m.safetensors"
    sj.save_masks(path, jax.tree.map(jnp.asarray, tree))
    got = sj.load_masks(path)
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    nets.assert_equal(got, tree)


def test_other_containers_come_back_flat_or_like_the_parameters(tmp_path):
    @flax.struct.dataclass
    class Layer:
        kernel: jax.Array

    masks = [Layer(jnp.array([True, False])), Layer(jnp.array([False]))]
    sj.save_masks(tmp_path / "m", masks)
    flat = sj.load_masks(tmp_path / "m")
    assert list(flat) == ["0/kernel", "1/kernel"]
    got = sj.load_masks(tmp_path / "m", like=masks)
    assert isinstance(got[0], Layer)
    nets.assert_equal(got, masks)


def test_a_file_holds_one_bit_an_entry_and_no_pickle(tmp_path):
    sj.save_masks(tmp_path / "m", {"kernel": jnp.ones((100, 80), bool)})
    raw = (tmp_path / "m").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["kernel"]["dtype"] == "U8" and header["kernel"]["shape"] == [1000]
    assert len(raw) < 1500


def test_saving_replaces_a_file_and_leaves_no_other(tmp_path):
    for value in (True, False):
        sj.save_masks(tmp_path / "m", {"w": jnp.array([value])})
    assert bool(sj.load_masks(tmp_path / "m")["w"][0]) is False
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_saving_refuses_leaves_that_are_not_boolean(tmp_path, no_typecheck):
    with pytest.raises(ValueError, match="`w` has dtype float32"):
        sj.save_masks(tmp_path / "m", {"w": jnp.ones(2)})
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sj.load_masks(tmp_path / "nowhere")


def test_truncated_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "m"
    sj.save_masks(path, {"w": jnp.ones((50, 50), bool)})
    whole = path.read_bytes()
    foreign = safetensors.numpy.save({"w": np.zeros(3, np.float32)})
    for damaged in (whole[:-1], whole[:40], b"", b"no masks", foreign):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a masks file"):
            sj.load_masks(path)


DAMAGE = {
    "shapes": ["[[3]]", "[[-1, 4]]", "[3]", "null", "[[2.0, 4]]", "[[200, 4]]", "[[1]]"],
    "structure": ["5", "true", "-1", '["set", [0]]', "[1, 2]", '["list", []]', "nonsense"],
    "names": ["null", "[1]", '["other"]', '["w", "w"]'],
}


@pytest.mark.parametrize(
    ("entry", "text"), [(entry, text) for entry in DAMAGE for text in DAMAGE[entry]]
)
def test_damaged_metadata_is_refused(tmp_path, entry, text):
    path = tmp_path / "m"
    sj.save_masks(path, {"w": jnp.ones((2, 5), bool)})
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata, bits = file.metadata(), {"w": file.get_tensor("w")}
    before = {key: value for key, value in metadata.items() if "checksum" not in key}
    for found in (before, metadata):  # of an earlier version, and of this one
        safetensors.numpy.save_file(bits, path, found | {entry: text})
        with pytest.raises(ValueError, match="not a masks file"):
            sj.load_masks(path)


def test_files_of_earlier_versions_load(tmp_path):
    path, masks = tmp_path / "m", {"w": jnp.array([True, False])}
    sj.save_masks(path, masks)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata, bits = file.metadata(), {"w": file.get_tensor("w")}
    before = {key: value for key, value in metadata.items() if "checksum" not in key}
    safetensors.numpy.save_file(bits, path, before)
    nets.assert_equal(sj.load_masks(path), masks)


def test_a_changed_byte_is_never_other_masks(tmp_path):
    path, draw = tmp_path / "m", np.random.default_rng(0)
    masks = {"a": jnp.asarray(draw.random((9, 7)) < 0.5), "b": [jnp.ones(5, bool)]}
    sj.save_masks(path, masks)
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        place = int(draw.integers(len(whole)))
        other = bytes([whole[place] ^ (1 << int(draw.integers(8)))])
        path.write_bytes(whole[:place] + other + whole[place + 1 :])
        try:
            found = sj.load_masks(path)
        except ValueError as error:
            assert "not a masks file" in str(error)
            refused += 1
        else:
            nets.assert_equal(found, masks)
    assert refused > 250


def test_a_changed_bit_names_its_leaf(tmp_path):
    path = tmp_path / "m"
    sj.save_masks(path, {"a": jnp.ones(8, bool), "b": jnp.ones(8, bool)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\x7f")
    with pytest.raises(ValueError, match="damaged: the checksum is not that of the leaf b"):
        sj.load_masks(path)


def test_a_replaced_file_keeps_its_mode_and_a_link_leads_where_it_led(tmp_path):
    path, link = tmp_path / "m", tmp_path / "link"
    sj.save_masks(path, {"w": jnp.array([True])})
    path.chmod(0o640)
    link.symlink_to(path)
    sj.save_masks(link, {"w": jnp.array([False])})
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    assert bool(sj.load_masks(path)["w"][0]) is False


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path):
        with pytest.raises(ValueError, match="is not a regular file"):
            sj.save_masks(path, {"w": jnp.array([True])})
    assert stat.S_ISFIFO(fifo.stat().st_mode) and list(tmp_path.iterdir()) == [fifo]


def test_a_missing_folder_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="no folder 'not/there' for .*'not/there/m'"
    ):
        sj.save_masks("not/there/m", {"w": jnp.array([True])})


def test_bits_of_another_type_are_refused(tmp_path):
    path = tmp_path / "m"
    sj.save_masks(path, {"w": jnp.ones((2, 4), bool)})
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = {k: v for k, v in file.metadata().items() if "checksum" not in k}
    for bits in (np.ones(1, np.float32), np.ones((1, 1), np.uint8), np.ones(2, np.uint8)):
        safetensors.numpy.save_file({"w": bits}, path, metadata)
        with pytest.raises(ValueError, match="not a masks file"):
            sj.load_masks(path)


def test_odd_names_come_back(tmp_path):
    masks = {"__metadata__": jnp.array([True]), "a/b": jnp.array([False])}
    masks["a"] = {"b": jnp.array([True, False])}
    sj.save_masks(tmp_path / "m", masks)
    nets.assert_equal(sj.load_masks(tmp_path / "m"), masks)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m"
    sj.save_masks(path, {"w": jnp.array([True])})

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        sj.save_masks(path, {"w": jnp.array([False])})
    assert bool(sj.load_masks(path)["w"][0]) is True
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_masks_of_another_network_are_refused(tmp_path):
    sj.save_masks(tmp_path / "m", {"a": jnp.ones((2, 3), bool)})
    with pytest.raises(ValueError, match="`like` has the leaves w, .* holds a"):
        sj.load_masks(tmp_path / "m", like={"w": jnp.ones((2, 3))})
    sj.save_masks(tmp_path / "m", {"w": jnp.ones((2, 3), bool)})
    with pytest.raises(ValueError, match="`like` has 2 leaves"):
        sj.load_masks(tmp_path / "m", like={"a": jnp.ones(2), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"masks\['w'\].*\(2, 3\).*\(3, 2\)"):
        sj.load_masks(tmp_path / "m", like={"w": jnp.ones((3, 2))})
