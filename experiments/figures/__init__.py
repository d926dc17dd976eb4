"""What the figures and sentences of the larger experiments read from their rows."""
