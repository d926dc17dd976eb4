"""Experiments on a TPU or on a cluster: how programs are started there and joined."""
