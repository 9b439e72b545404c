"""The tutorial's blocks run in order as they stand, and show what the page says."""

import re
from pathlib import Path

import matplotlib
import numpy as np
import torch

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def test_the_tutorials_network_collapses(tmp_path, monkeypatch, capsys):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names = {}
    threads = torch.get_num_threads()
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 6
    torch.set_num_threads(1)
    try:
        for block in blocks:
            exec(block, names)
    finally:
        torch.set_num_threads(threads)
    nc1 = names["nc1"]["value"].to_numpy()
    assert len(nc1) == 7 and nc1[-1] < 0.3 * nc1[0]
    assert (tmp_path / "collapse.png").stat().st_size > 10_000
    second_pass = {"nc4_ncc_mismatch", "ncc_accuracy"}
    second_pass |= {"network_accuracy", "expected_calibration_error"}
    second_pass |= {"nc1_class_balanced"}  # the tutorial's classes are of unequal sizes
    assert set(names["streamed"].absent) == second_pass
    assert np.isfinite(list(names["result"].values())).all()
    assert "nc4_ncc_mismatch" in capsys.readouterr().out
