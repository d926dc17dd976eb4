"""Three questions about paths: which weights lie on one, how short one can be, and whether
the flow is a sum over paths."""
