"""Models of other libraries, flowed, pruned and trained one step: `make models`."""
