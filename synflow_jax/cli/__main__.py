"""`python -m synflow_jax.cli` is the command `synflow`."""

import sys

from synflow_jax.cli.commands import main

sys.exit(main())
