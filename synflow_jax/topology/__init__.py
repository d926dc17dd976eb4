"""Which weights join which units, read from the jaxpr."""
