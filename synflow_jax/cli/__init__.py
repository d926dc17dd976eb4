"""The `synflow` command: prunes a network from the shell, and prints and compares masks."""

from synflow_jax.cli.commands import main as main
