import pytest
import torch

from rdmldg_ray.mtct.checks import MemoryExhaustedError, check_finite, check_images, memory_explained
from rdmldg_ray.mtct.loss import PathwayLosses


def test_running_out_of_memory_names_step_and_samples():
    message = "^step 7: out of memory with 2 images of up to 300 tokens each: a, b$"
    with pytest.raises(MemoryExhaustedError, match=message), memory_explained(7, ["a", "b"], 300):
        torch.empty(2**60)
    with pytest.raises(MemoryExhaustedError, match=message), memory_explained(7, ["a", "b"], 300):
        raise torch.OutOfMemoryError("CUDA out of memory.")  # as a GPU's allocator raises it


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shape"), memory_explained(7, ["a"], 300):
        torch.zeros(2) @ torch.zeros(3, 3)


def test_samples_without_an_image_are_named_with_the_step():
    message = "^step 3: 2 of 3 samples have no image: b, c; ingest the data set again"
    with pytest.raises(ValueError, match=message):
        check_images(3, ["a", "b", "c"], [b"png", b"", None])
    check_images(3, ["a"], [b"png"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_step_and_samples(bad):
    fine = torch.zeros(3)
    wrong = torch.tensor([0.0, bad, 0.0])
    for losses in (PathwayLosses(wrong, fine), PathwayLosses(fine, wrong)):
        with pytest.raises(ValueError, match=r"^step 5: the loss is not finite for b; lower the learning"):
            check_finite(losses, 5, ["a", "b", "c"])
    check_finite(PathwayLosses(fine, fine), 5, ["a", "b", "c"])
