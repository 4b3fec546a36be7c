"""AR@AN against the reference's figures."""
import os

import numpy as np
import pytest

import eval as evaluation


@pytest.mark.parametrize("name", ["eval", "eval_capped"])
def test_recall_is_the_references(golden, shared, name, capsys):
    figures = golden(name + ".npz")
    folder = os.path.join(shared, "golden")
    numbers, mean, recall = evaluation.run_evaluation(
        os.path.join(folder, name + "_ground_truth.json"), os.path.join(folder, name + "_proposals.json"))
    np.testing.assert_allclose(recall, figures["recall"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(mean, figures["avg_recall"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(numbers, figures["proposals_per_video"], rtol=1e-12)
    assert capsys.readouterr().out == "\tArea Under the AR vs AN curve: %s%%\n" % float(figures["auc"])
