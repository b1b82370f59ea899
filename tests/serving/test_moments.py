import polars as pl
import pytest

from gr_jax.data.log import times
from gr_jax.serving.moments import moment

TEXTS = [
    "2024-05-01",
    "2024-05-01 12:30",
    "2024-05-01T12:30:00",
    "2024-05-01T12:30:00.25Z",
    "2024-05-01 12:30:00,123456789+02:00",
    "2024-05-01t12:30:59.999999999999z",
    "2024-05-01 12:30:00 UTC",
    "2024-05-01T00:00:00.000000001-0530",
    " 2024-05-01T12:30:00+02 ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_means_in_a_request_what_it_means_in_a_log(text):
    whole, *rest = times.split(pl.Series("time", [text]), "s", where="here")
    assert moment(text) == (whole[0], rest[0][0] if rest else 0.0)


@pytest.mark.parametrize("text", ["2024-13-01", "2024-02-30", "2024-05-01T25:00", "1/5/2024", "x"])
def test_text_that_is_no_time_in_a_log_is_none_in_a_request(text):
    assert times.split(pl.Series("time", [text]), "s", where="here")[0][0] is None
    with pytest.raises(ValueError, match="expected unix seconds"):
        moment(text)
