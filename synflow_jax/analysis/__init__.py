"""Analyses of masks and networks: kept weights, connected layers, conserved flow."""

from synflow_jax.analysis.collapse import Connectivity as Connectivity
from synflow_jax.analysis.collapse import connectivity as connectivity
from synflow_jax.analysis.collapse import critical_compression as critical_compression
from synflow_jax.analysis.collapse import largest_compression as largest_compression
from synflow_jax.analysis.conservation_law import conservation as conservation
from synflow_jax.analysis.effective import effective_masks as effective_masks
from synflow_jax.analysis.effective import unreached as unreached
from synflow_jax.analysis.summary import Row as Row
from synflow_jax.analysis.summary import collapsed as collapsed
from synflow_jax.analysis.summary import summarize as summarize
