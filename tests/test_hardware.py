import pytest

from gr_jax.hardware import DEVICES, peak_of


@pytest.mark.parametrize(
    "kind, bfloat16",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_a_whole_word_of_its_name(kind, bfloat16):
    assert peak_of(kind, "bfloat16") == bfloat16


def test_float32_has_the_peak_of_tf32():
    assert peak_of("NVIDIA H200", "float32") == DEVICES["h200"].f32_flops
    assert peak_of("NVIDIA L40S", "float32") == 183e12
