import jax.numpy as jnp
import pytest

from gr_jax import cli
from gr_jax.training.loop import Diverged, check_finite


def test_a_parameter_that_is_not_finite_is_named():
    check_finite(3, {"blocks": [{"uvqk": jnp.array([1.0, 2.0])}]})
    with pytest.raises(Diverged, match="step 3: blocks/0/uvqk is not finite"):
        check_finite(3, {"blocks": [{"uvqk": jnp.array([1.0, jnp.inf])}]})


def test_divergence_is_one_line_of_the_command(monkeypatch, capsys):
    def main(argv):
        raise Diverged(3, "loss=nan")

    monkeypatch.setattr("sys.argv", ["train"])
    with pytest.raises(SystemExit) as done:
        cli.run(main)
    assert done.value.code == 2 and capsys.readouterr().err.startswith(
        "error: step 3: loss=nan; the last checkpoint"
    )
