import json

import pytest
import torch
import torch.distributed as dist
from torch import nn

from rdmldg_ray.mtct.metrics import Meter, describe, json_line, peak_flops


@pytest.fixture
def process_group(monkeypatch):
    """A process group of this process alone."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def meter(process_group):
    """A meter of ten steps, of which four were done before."""

    def meter(model=None):
        return Meter(4, 10, model or nn.Linear(8, 16, bias=False), torch.device("cpu"))

    return meter


def step(meter, number, **counts):
    meter.data_arrived()
    done = meter.step_done(number, **({"samples": 3, "tokens": 80, "laid_out": 100} | counts))
    meter.data_wanted()
    return done


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
    ],
)
def test_known_devices_have_their_makers_peak(device, teraflops):
    assert peak_flops(device) == teraflops * 1e12


@pytest.mark.parametrize("device", ["Tesla V100-SXM2-16GB", "NVIDIA H20", "NVIDIA GeForce GTX 1080", ""])
def test_other_devices_have_none(device):
    assert peak_flops(device) is None


def test_rates_are_those_since_the_first_batch_and_add_up(meter):
    meter = meter()
    first = step(meter, 5)
    second = step(meter, 6, samples=5, tokens=90, laid_out=100)
    assert first["padding_share"] == pytest.approx(0.2)
    assert second["padding_share"] == pytest.approx(0.15)
    assert second["tokens_per_s"] / second["samples_per_s"] == pytest.approx(170 / 8)
    assert second["eta_s"] == pytest.approx(4 / 2 * 8 / second["samples_per_s"])
    assert second["resumed_at"] == 4


def test_the_first_batch_is_the_streams_start_and_later_ones_are_waited_for(meter):
    meter = meter()
    meter.created -= 1000
    first = step(meter, 5)
    assert (first["data_wait_share"], first["stream_start_s"] > 1000) == (0, True)
    # As if the second batch had been asked for long ago, and the first half of that time before.
    meter.started -= 4000
    meter.wanted -= 2000
    assert step(meter, 6)["data_wait_share"] == pytest.approx(0.5, abs=0.05)


def test_without_a_known_device_mfu_is_unknown_and_nothing_is_counted(meter):
    meter = meter()
    with meter.forward(4):
        nn.Linear(8, 16)(torch.zeros(4, 8))
    assert meter.flops_per_token is None
    assert step(meter, 5)["mfu"] is None


@pytest.mark.parametrize(("trained", "passes"), [("all", 3), ("none", 2), ("half", 2.5)])
def test_mfu_counts_a_forward_pass_and_the_gradients_that_are_needed(meter, trained, passes):
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[0].requires_grad_(trained == "all")
    model[1].requires_grad_(trained != "none")
    meter = meter(model)
    meter.peak = 1e12
    for _ in range(2):  # counted once
        with meter.forward(laid_out=4):
            model(torch.zeros(4, 8))
    assert meter.flops_per_token == passes * 2 * (2 * 8 * 8)
    done = step(meter, 5)
    assert done["mfu"] == pytest.approx(meter.flops_per_token * done["tokens_per_s"] / 1e12)


def test_memory_is_this_processs_on_a_cpu(meter):
    assert 0.01 < step(meter(), 5)["memory_gib"] < 1000


def test_a_line_says_all_and_what_is_unknown(meter):
    metrics = {"loss_direct": 1.5, "loss_reasoning": 0.25, "learning_rate": 3e-3} | step(meter(), 5)
    metrics |= {"samples_per_s": 26.04, "tokens_per_s": 5934.2, "memory_gib": 1.23, "eta_s": 200.4}
    assert describe(metrics) == (
        "loss direct 1.500 reasoning 0.250, lr 3.0e-03, 26.0 images/s, 5,934 tokens/s, MFU unknown, "
        "1.2 GiB, 0.0% waiting for data, ETA 3:20"
    )
    assert "MFU 45.1%" in describe(metrics | {"mfu": 0.4512})
    assert json.loads(json_line(metrics))["mfu"] is None
    assert json.loads(json_line(metrics)).keys() == metrics.keys()
