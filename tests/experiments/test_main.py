"""An experiment by its name: `python -m experiments NAME`."""

import subprocess
import sys

import pytest

from experiments import __main__ as main
from experiments import report


def test_every_experiment_has_its_name_and_says_what_it_is(capsys):
    known = main.commands()
    assert {*report.NAMES, "report", "demo", "datasets", "criteria_table"} == set(known)
    main.main([])
    listed = capsys.readouterr().out
    assert all(
        f"  {name} " in listed and own.about in listed for name, own in known.items()
    )


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(SystemExit, match="no experiment 'acuracy'; there are\n  ablation"):
        main.main(["acuracy"])


@pytest.mark.parametrize("form", [["experiments", "rounds"], ["experiments.rounds"]])
def test_both_forms_of_the_command_work(form):
    run = [sys.executable, "-m", *form, "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m experiments rounds")
