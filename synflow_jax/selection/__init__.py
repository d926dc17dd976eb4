"""Scores to masks: exactly k weights, without a sort."""
