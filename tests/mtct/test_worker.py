import os

import torch

# DeepSpeed chooses when it is first imported.
os.environ.setdefault("DS_ACCELERATOR", "cpu")


def test_what_a_step_drops_depends_on_seed_step_and_rank_alone():
    from rdmldg_ray.mtct.worker import seed_step

    def drawn(*numbers):
        seed_step(*numbers)
        return torch.nn.functional.dropout(torch.ones(64), 0.5)

    first = drawn(0, 3, 1)
    torch.rand(5)
    assert torch.equal(first, drawn(0, 3, 1))
    for other in ((1, 3, 1), (0, 4, 1), (0, 3, 0)):
        assert not torch.equal(first, drawn(*other))
