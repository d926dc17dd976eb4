"""How an experiment is run and reported: commands, sweeps of runs, tables and pages."""
