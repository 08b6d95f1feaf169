"""Test the benchmark of the host path: its ratios, and that it runs."""

import pytest

pytest.importorskip("torch")


def test_the_shares_are_those_of_rounds_and_of_minima():
    from tests.benchmarks import host

    times = {
        "compress": [(0.002, 0.004), (0.003, 0.004), (0.001, 0.004)],
        "torch 1": [(0.004, 0.008), (0.002, 0.008), (0.005, 0.008)],
    }

    ours, peer = host.lines("siglip2", times)

    assert "median      2.0 (4.0) ms, least      1.0 (4.0) ms" in ours
    assert peer.endswith("ours 0.50 of it, 0.50 of its least")  # Of 0.5, 1.5, 0.2.


@pytest.mark.slow
def test_a_small_case_has_a_line_a_contender(capsys):
    from tests.benchmarks import host

    host.main(["--cases", "tiny", "--rounds", "1", "--threads", "1"])

    ours, peer = capsys.readouterr().out.splitlines()
    assert ours.startswith("tiny            compress ")
    assert peer.startswith("tiny            torch 1 ")
