"""The table: which rule each primitive follows. docs/flow.md has a line for each."""

from synflow_jax.transform import contractions
from synflow_jax.transform import control_flow as control
from synflow_jax.transform import elementwise as arithmetic
from synflow_jax.transform import structural as structure
from synflow_jax.transform.values import Rule

flow_rules: dict[str, Rule] = {
    "dot_general": contractions.dot_general,
    "ragged_dot_general": contractions.ragged_dot_general,
    "conv_general_dilated": contractions.conv_general_dilated,
    "add": arithmetic.add,
    "add_any": arithmetic.add,
    "sub": arithmetic.subtract,
    "mul": arithmetic.multiply,
    "div": arithmetic.divide,
    "integer_pow": arithmetic.power,
    "pow": arithmetic.power,
    "rsqrt": arithmetic.power,
    "max": arithmetic.maximum,
    "min": arithmetic.maximum,
    "select_n": arithmetic.select_n,
    "stop_gradient": arithmetic.stop,
    "pad": structure.pad,
    "reduce_window_max": structure.reduce_window_max,
    "reduce_max": structure.reduce_max,
    "reduce_min": structure.reduce_max,
    "dynamic_update_slice": structure.updating,
    "concatenate": structure.joining,
    "stack": structure.joining,
    "optimization_barrier": structure.barrier,
    "cond": control.cond,
    "scan": control.scan,
    "while": control.while_loop,
}

_SEVERAL: dict[Rule, str] = {
    arithmetic.identity: (
        "neg abs sign floor ceil round clamp convert_element_type copy copy_p name "
        "reduce_precision is_finite not tanh logistic erf erfc erf_inv exp exp2 expm1 log "
        "log1p sqrt cbrt square sin cos tan asin acos atan sinh cosh asinh acosh atanh "
        "lgamma digamma"
    ),
    arithmetic.compare: "gt ge lt le eq ne and or xor",
    structure.structural: (
        "reshape transpose squeeze broadcast_in_dim tile rev sharding_constraint "
        "layout_constraint mesh_cast reshard pvary"
    ),
    structure.taking: "slice split unstack dynamic_slice gather",
    structure.summing: "cumsum reduce_sum reduce_window_sum",
    structure.scatter: "scatter scatter-add",
    control.call: (
        "jit pjit closed_call core_call composite custom_jvp_call custom_vjp_call remat2 "
        "checkpoint"
    ),
    # Functions of jax.nn, by the name under which JAX compiles them.
    control.activation: (
        "jit:celu jit:elu jit:hard_sigmoid jit:hard_silu jit:hard_tanh jit:leaky_relu "
        "jit:log_sigmoid jit:mish jit:selu jit:silu jit:soft_sign jit:softplus "
        "jit:sparse_plus jit:sparse_sigmoid jit:squareplus"
    ),
}
for _rule, _names in _SEVERAL.items():
    flow_rules |= dict.fromkeys(_names.split(), _rule)

# Primitives that call other jaxprs.
CALLS = frozenset(
    name for name, rule in flow_rules.items() if rule.__module__ == control.__name__
)
