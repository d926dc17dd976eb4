"""The experiments of the SynFlow paper: one module for each of its figures and tables.

  python -m experiments NAME --scale smoke|cpu|paper
  python -m experiments report    # one page with all of them
  python -m experiments demo      # a demonstration in minutes

An experiment says which runs there are and does one; it knows no other experiment. It
stands on `methods` (the pruning methods), figures/ (what came out, in words and drawn),
training/, datasets/, harness/ (the command line and the runs) and published/ (the paper's
numbers). tpu/ starts any of them on several machines.
"""
