"""Figures and sentences, made from the rows that an experiment logged."""
