"""One model, in its environment: prints its row of results/models.json as one line.

python -m benchmarks.models.one ENVIRONMENT NAME
"""

import importlib.metadata
import json
import os
import re
import resource
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import synflow_jax as sj
from benchmarks.models.cases import BYTES, DENSITIES, ROUNDS, SECONDS, Case
from benchmarks.models.listed import ENVIRONMENTS
from synflow_jax.trees import is_floating


def measured(case: Case) -> dict:
    """All that a row says of a model that has a flow.

    Raises:
      FlowError: if it has none.
    """
    names, leaves = sj.leaf_names(case.params), jax.tree.leaves(case.params)
    prunable = [*map(case.prunable, names, leaves)]
    size = sum(leaf.size for leaf, yes in zip(leaves, prunable) if yes)
    row = {"parameters": sum(leaf.size for leaf in leaves), "prunable": size}
    score, masks = sj.synflow(case.apply_fn, case.input_shape), sj.all_kept(case.params)

    start = time.process_time()
    traced = jax.jit(score).trace(case.params, masks)
    row["trace_s"], start = _since(start)
    compiled = traced.lower().compile(compiler_options=_as_users_do())
    row["compile_s"], start = _since(start)
    params, scores, row["filled"] = _scored(case, names, prunable, compiled, masks)
    _, start = _since(start)
    jax.block_until_ready(compiled(params, masks))
    row["run_s"], start = _since(start)
    row["finite"] = _positive(scores)
    row |= _conserved(case, params, masks, scores)
    row["conservation_s"], start = _since(start)

    row["kept"], row["connected"] = {}, {}
    for density in DENSITIES:
        options = {"rounds": ROUNDS, "prunable": case.prunable}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            masks, info = sj.prune(score, params, density, **options)
        kept = sum(
            int(mask.sum()) for mask, yes in zip(jax.tree.leaves(masks), prunable) if yes
        )
        row["kept"][str(density)] = [kept, sj.num_kept(size, density)]
        row["connected"][str(density)] = _positive(compiled(params, masks))
        row["unreached"] = int(info.unreached[0])
    row["prune_s"], start = _since(start)
    row["zeros"] = _stays_zero(case, masks)
    row["step_s"], _ = _since(start)
    exact = all(kept == wanted for kept, wanted in row["kept"].values())
    works = row["finite"] and exact and row["zeros"]
    return row | {"status": "works" if works else "wrong"}


def _as_users_do():
    """The options that programs have without this process's flags, which compile fast."""
    usual = {
        "xla_backend_optimization_level": 3,
        "xla_cpu_use_fusion_emitters": True,
        "xla_cpu_parallel_codegen_split_count": 32,
    }
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in usual.items() if f"--{name}=" in flags}


def _since(start):
    """Seconds of CPU time, which other programs on the machine do not change."""
    now = time.process_time()
    return round(now - start, 4), now


def _positive(scores):
    """Whether the scores are finite and not all zero."""
    totals = [np.asarray(s, np.float64).sum() for s in jax.tree.leaves(scores)]
    return bool(np.isfinite(totals).all() and sum(totals) > 0)


def _scored(case, names, prunable, compiled, masks):
    """The parameters to score with, their scores, and the leaves that had to be filled
    because they start at zero."""
    scores = compiled(case.params, masks)
    leaves = zip(jax.tree.leaves(case.params), jax.tree.leaves(scores))
    rows = [
        (name, not leaf.any(), not score.any())
        for name, yes, (leaf, score) in zip(names, prunable, leaves)
        if yes
    ]
    zero = [name for name, is_zero, _ in rows if is_zero]
    if not zero or not any(unscored for *_, unscored in rows):
        return case.params, scores, []
    params = sj.filled(case.params, dict.fromkeys(zero, 1.0))
    return params, compiled(params, masks), zero


def _conserved(case, params, masks, scores):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sj.conservation(
            case.apply_fn, params, masks, case.input_shape, scores=scores
        )
    said = [str(w.message) for w in caught if "conservation law" in str(w.message)]
    return {
        "units": len(found.units.gap),
        "unit_gap": float(found.unit_gap),
        "cuts": len(found.cuts),
        "cut_gap": float(found.cut_gap),
        "not_compared": said[0] if said else None,
    }


def _stays_zero(case, masks):
    """Whether one step of Adam leaves every pruned weight 0 and moves others."""
    example = case.example()

    def loss_fn(params):
        outs = [y for y in jax.tree.leaves(case.apply_fn(params, example)) if y.size]
        outs = [jnp.abs(y) for y in outs if jnp.issubdtype(y.dtype, jnp.inexact)]
        return sum(jnp.mean((y - 1.0) ** 2) for y in outs)

    optimizer = sj.static_pruning(optax.adamw(1e-3), masks)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), loss

    before = sj.apply_masks(case.params, masks)
    after, loss = step(before, optimizer.init(before))
    triples = [*zip(*map(jax.tree.leaves, (before, after, masks)))]
    zero = all(not jnp.where(mask, 0, new).any() for _, new, mask in triples)
    moved = any((new != old).any() for old, new, _ in triples)
    return bool(zero and moved and np.isfinite(loss))


def refused(error: sj.FlowError) -> dict:
    """What a row says of a model that has no flow."""
    text = re.sub(r"/\S*?/site-packages/", "", str(error))
    primitive = re.search(r"primitive `([^`]+)`", text)
    return {
        "status": "refused",
        "primitive": primitive and primitive.group(1),
        "reason": text,
    }


def row_of(environment: str, name: str) -> dict:
    """The row of a model, whatever happens."""
    module, start = ENVIRONMENTS[environment], time.process_time()
    row = {"environment": environment, "model": name}
    packages = [re.split(r"[<>=]", r)[0] for r in module.REQUIREMENTS]
    row["versions"] = {p: importlib.metadata.version(p) for p in ("jax", *packages)}
    case = module.MODELS[name]()
    row["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(case.params))
    assert all(map(is_floating, jax.tree.leaves(case.params)))
    try:
        row |= measured(case)
    except sj.FlowError as error:
        row |= refused(error)
    row["seconds"], _ = _since(start)
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    print(json.dumps(row_of(*sys.argv[1:])))
