"""The stand-in for tensor cores: one rounding a product, and nothing else changed."""

import pytest
import torch
import torch.nn.functional as F
from tensor_cores import TensorCores


@pytest.mark.parametrize(
    "product",
    [
        lambda x, y: x @ y,
        lambda x, y: torch.addmm(x[0, :8], x, y),
        lambda x, y: F.linear(x, y.T, x[0, :8]),
        lambda x, y: torch.bmm(x[None], y[None]),
        lambda x, y: F.conv2d(x[None, :, :, None], y.T[:, :, None, None][:, :32], x[0, :8]),
        lambda x, y: torch.einsum("ij,jk->ik", x, y),
    ],
)
@torch.inference_mode()
def test_a_product_is_rounded_once(product):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 2048, generator=generator).half()
    y = torch.randn(2048, 8, generator=generator).half()
    with TensorCores():
        found = product(x, y)
    assert found.dtype == torch.float16
    exact = product(x.double(), y.double())
    # Half a unit in the last place of fp16, and what fp32 sums of 2,048 products may be off.
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-11 + 1e-4).all()


def test_other_types_and_operations_are_left_alone():
    x = torch.arange(12.0).reshape(3, 4)
    with TensorCores():
        assert torch.equal(x @ x.T, torch.tensor([[14.0, 38, 62], [38, 126, 214], [62, 214, 366]]))
        assert (x.bfloat16() @ x.T.bfloat16()).dtype == torch.bfloat16
        assert torch.equal((x.half() + x.half()).float(), 2 * x)
