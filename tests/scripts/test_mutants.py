"""The list of planted faults is up to date, and what is said of one is right."""

import pytest

from scripts import mutants

FAULTS = mutants.read()


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.fault for fault in FAULTS])
def test_a_fault_can_be_planted(fault):
    text = (mutants.ROOT / fault.file).read_text()
    assert text.count(fault.old) == 1 and fault.new != fault.old
    compile(text.replace(fault.old, fault.new), fault.file, "exec")
    assert (mutants.ROOT / fault.tests).exists()


@pytest.mark.parametrize(
    "before, after, output, said",
    [
        (0, 1, "E   AssertionError: 1 is not 2", "noticed"),
        (0, 0, "3 passed", "SURVIVED"),
        (0, 1, "E       assert 1 == 2", "noticed"),
        (0, 1, ">   assert x == 1\nE   NameError: name 'x'", "fails, but not on a value (code 1)"),
        (0, 2, "assert", "fails, but not on a value (code 2)"),
        (1, 1, "E   AssertionError", "the tests fail without it"),
    ],
)
def test_verdicts(before, after, output, said):
    assert mutants.verdict(before, after, output) == said
