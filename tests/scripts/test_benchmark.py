"""The benchmark's command line; what it measures is in docs/benchmarks.md."""

import pytest

from scripts import benchmark


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--platform cuda", ("--topology: is needed", "--target-config: is needed")),
        ("--platform cuda --topology 1x1x1 --target-config absent", ("no file absent",)),
        ("--platform tpu --latents 0 4 4", ("--topology: is needed", "--latents: 0 4 4")),
        ("--platform tpu --topology nonsense", ("--platform tpu cannot be described",)),
    ],
)
def test_what_cannot_be_measured_is_told(capsys, given, words):
    with pytest.raises(SystemExit) as end:
        benchmark.arguments(["vae-memory", *given.split()])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)
