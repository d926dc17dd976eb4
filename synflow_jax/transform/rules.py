"""The default table: the rule of each primitive. docs/flow.md has a line for each."""

import dataclasses

from synflow_jax.transform import (
    class_moves,
    class_rules,
    class_windows,
    contractions,
    control_flow,
    elementwise,
    fourier,
    linear_maps,
    products,
    scattering,
    sharded,
    sorting,
    structural,
    while_loops,
)
from synflow_jax.transform.values import Rule, RuleTable, one_flow

# Goes inside a jitted function, also where no flow enters it.
CALL = Rule(control_flow.call, keeps_paths=True, sees_kinds=True, goes_inside=True)

_PASSES = Rule(elementwise.identity, keeps_paths=True, sees_kinds=True)
_NONLINEAR = Rule(elementwise.nonlinearity, keeps_paths=True, sees_kinds=True)
_EXPONENTIAL = Rule(elementwise.exponential, keeps_paths=True, sees_kinds=True)
_POWER = Rule(elementwise.power, keeps_paths=True, sees_kinds=True)
_ADD = Rule(elementwise.add, keeps_paths=True, sees_kinds=True)
_JOINS = Rule(structural.joining, keeps_paths=True, sees_kinds=True)

# Rules of several primitives each.
_SHARED = {
    _PASSES: "convert_element_type copy copy_p name reduce_precision real imag conj",
    _NONLINEAR: (
        "abs sign floor ceil round clamp is_finite not tanh logistic erf erfc erf_inv "
        "expm1 log log1p sqrt cbrt square sin cos tan asin acos atan sinh cosh asinh acosh "
        "atanh lgamma digamma bessel_i0e bessel_i1e log2 "
        "one_minus_square polynomial"
    ),
    _EXPONENTIAL: "exp exp2",
    _POWER: "integer_pow pow rsqrt",
    _ADD: "add add_any",
    _JOINS: "concatenate stack",
    Rule(elementwise.compare, keeps_paths=one_flow, sees_kinds=True): (
        "gt ge lt le eq ne and or xor lt_to le_to eq_to rem atan2 nextafter"
    ),
    Rule(structural.structural, keeps_paths=True, sees_kinds=True): (
        "reshape transpose squeeze broadcast_in_dim tile rev"
    ),
    Rule(structural.placing, keeps_paths=True, sees_kinds=True): (
        "sharding_constraint layout_constraint mesh_cast reshard pvary"
    ),
    Rule(structural.taking, keeps_paths=True, sees_kinds=True): (
        "slice split unstack dynamic_slice gather"
    ),
    Rule(control_flow.nothing_returned, keeps_paths=True, sees_kinds=True): (
        "debug_callback debug_print dce_sink"
    ),
    Rule(structural.summing, keeps_paths=True): "cumsum reduce_sum reduce_window_sum",
    Rule(structural.summing_logs, keeps_paths=True): "cumlogsumexp",
    Rule(scattering.scatter, keeps_paths=True): "scatter scatter-add",
    Rule(structural.reduce_all, keeps_paths=True): "unvmap_any unvmap_max",
    Rule(sharded.communicate, keeps_paths=True): (
        "psum psum_invariant all_gather all_gather_invariant all_gather_reduced ppermute "
        "all_to_all reduce_scatter"
    ),
    CALL: (
        "jit pjit closed_call core_call composite custom_jvp_call custom_vjp_call "
        "call_hi_primitive"
    ),
    Rule(
        control_flow.rematerialised, keeps_paths=True, sees_kinds=True, goes_inside=True
    ): "checkpoint remat2",
    Rule(
        control_flow.checked, keeps_paths=True, sees_kinds=True, goes_inside=True
    ): "jit:branched_error_if_impl",
    # Functions of jax.nn, by the name under which JAX compiles them.
    Rule(control_flow.activation, keeps_paths=True, sees_kinds=True, goes_inside=True): (
        "jit:celu jit:elu jit:hard_sigmoid jit:hard_silu jit:hard_tanh jit:leaky_relu "
        "jit:log_sigmoid jit:mish jit:selu jit:silu jit:soft_sign jit:softplus "
        "jit:sparse_plus jit:sparse_sigmoid jit:squareplus"
    ),
}

_SINGLE = {
    "dot_general": Rule(contractions.dot_general, keeps_paths=one_flow, sees_kinds=True),
    "ragged_dot_general": Rule(contractions.ragged_dot_general, keeps_paths=one_flow),
    "conv_general_dilated": Rule(contractions.conv_general_dilated, keeps_paths=one_flow),
    "sub": Rule(elementwise.subtract, keeps_paths=True, sees_kinds=True),
    "neg": Rule(elementwise.negate, keeps_paths=True, sees_kinds=True),
    "mul": Rule(
        elementwise.multiply, keeps_paths=elementwise.multiplies_paths, sees_kinds=True
    ),
    "div": Rule(elementwise.divide, keeps_paths=elementwise.divides_paths, sees_kinds=True),
    "max": Rule(elementwise.maximum, keeps_paths=True, sees_kinds=True),
    "min": Rule(elementwise.maximum, keeps_paths=one_flow, sees_kinds=True),
    "select_n": Rule(
        elementwise.select_n, keeps_paths=elementwise.selects_paths, sees_kinds=True
    ),
    "stop_gradient": Rule(elementwise.stop, keeps_paths=True, sees_kinds=True),
    "pad": Rule(structural.pad, keeps_paths=True, sees_kinds=True),
    "reduce_window_max": Rule(structural.reduce_window_max, keeps_paths=True),
    "reduce_max": Rule(structural.reduce_max, keeps_paths=True),
    "reduce_min": Rule(structural.reduce_max),
    "reduce_window_min": Rule(structural.reduce_window_max),
    "sort": Rule(sorting.sort),
    "top_k": Rule(sorting.top_k),
    "approx_top_k": Rule(sorting.approx_top_k),
    "argmax": Rule(sorting.argmax),
    "argmin": Rule(sorting.argmax),
    "reduce_or": Rule(structural.reduce_max, keeps_paths=True),
    "reduce_and": Rule(structural.reduce_max),
    "unvmap_all": Rule(structural.reduce_all),
    "cummax": Rule(structural.cumulative_max, keeps_paths=True),
    "cummin": Rule(structural.cumulative_max),
    "reduce_prod": Rule(products.reduce_prod, sees_kinds=True),
    "cumprod": Rule(products.cumprod, sees_kinds=True),
    "scatter-max": Rule(scattering.scatter_max, keeps_paths=True),
    "scatter-min": Rule(scattering.scatter_max),
    "scatter-mul": Rule(scattering.scatter_mul, keeps_paths=True),
    "scatter-sub": Rule(scattering.scatter_sub, keeps_paths=True),
    "fft": Rule(fourier.fft, keeps_paths=True),
    "complex": Rule(fourier.join, keeps_paths=True),
    "custom_linear_solve": Rule(linear_maps.solve, keeps_paths=True),
    "pmax": Rule(sharded.largest, keeps_paths=True),
    "pmin": Rule(sharded.largest),
    "shard_map": Rule(
        sharded.shard_map, keeps_paths=True, sees_kinds=True, goes_inside=True
    ),
    "dynamic_update_slice": Rule(scattering.updating, keeps_paths=True),
    "optimization_barrier": Rule(structural.barrier, keeps_paths=True, sees_kinds=True),
    "device_put": Rule(structural.barrier, keeps_paths=True, sees_kinds=True),
    "cond": Rule(control_flow.cond, keeps_paths=True, sees_kinds=True, goes_inside=True),
    "scan": Rule(control_flow.scan, keeps_paths=True, sees_kinds=True, goes_inside=True),
    "while": Rule(
        while_loops.while_loop, keeps_paths=True, sees_kinds=True, goes_inside=True
    ),
}

_RULES = _SINGLE | {n: rule for rule, names in _SHARED.items() for n in names.split()}

# How a rule is applied to flows of which equal positions are stored once; the others are
# shown whole flows. An activation by name (jit:silu) is entrywise too, unless it is a call.
ENTRYWISE = frozenset(
    "convert_element_type copy copy_p name reduce_precision real imag conj abs sign floor "
    "ceil round clamp is_finite not tanh logistic erf erfc erf_inv expm1 log log1p sqrt "
    "cbrt square sin cos tan asin acos atan sinh cosh asinh acosh atanh lgamma digamma "
    "bessel_i0e bessel_i1e log2 exp exp2 integer_pow pow rsqrt add add_any gt ge lt le eq "
    "ne and or xor rem atan2 nextafter sub neg mul div max min select_n stop_gradient "
    "complex".split()
)
_AT_CLASSES = {
    **dict.fromkeys(ENTRYWISE, class_rules.entrywise),
    **dict.fromkeys(
        "transpose squeeze broadcast_in_dim reshape rev slice split unstack pad "
        "tile".split(),
        class_moves.moving,
    ),
    **dict.fromkeys(
        "jit pjit closed_call core_call composite custom_jvp_call custom_vjp_call "
        "call_hi_primitive optimization_barrier device_put".split(),
        class_rules.through,
    ),
    **{
        n: class_rules.activation
        for n in _RULES
        if _RULES[n].apply is control_flow.activation
    },
    **dict.fromkeys(
        "cumsum cummax cummin cumlogsumexp cumprod".split(), class_rules.along_axis
    ),
    **dict.fromkeys(
        "reduce_max reduce_min reduce_or reduce_and".split(), class_rules.largest
    ),
    **dict.fromkeys(["reduce_window_max", "reduce_window_min"], class_windows.largest),
    "reduce_sum": class_rules.summing,
    "reduce_window_sum": class_windows.summing,
    **dict.fromkeys(["checkpoint", "remat2"], class_rules.rematerialised),
    "concatenate": class_moves.joining,
    "stack": class_moves.stacking,
    "dynamic_slice": class_moves.slicing,
    "gather": class_moves.gather,
    "dot_general": class_rules.dot_general,
    "conv_general_dilated": class_windows.conv_general_dilated,
}

flow_rules = RuleTable(
    {
        name: dataclasses.replace(rule, at_classes=_AT_CLASSES.get(name))
        for name, rule in _RULES.items()
    }
)
