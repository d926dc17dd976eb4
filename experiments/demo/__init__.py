"""The demonstration: which methods keep a network connected, and what that is worth."""
