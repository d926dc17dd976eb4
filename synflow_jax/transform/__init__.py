"""`flow`, a program transformation like `jax.grad`, and the rules that it applies."""

from synflow_jax.transform.network_flow import flow as flow
from synflow_jax.transform.network_flow import log_flow as log_flow
from synflow_jax.transform.rules import flow_rules as flow_rules
from synflow_jax.transform.scaled import Scaled as Scaled
from synflow_jax.transform.values import Equation as Equation
from synflow_jax.transform.values import Rule as Rule
from synflow_jax.xla.jaxprs import FlowError as FlowError
