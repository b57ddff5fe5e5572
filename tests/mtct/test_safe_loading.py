import json
import os
import pickle
import subprocess
import sys

import pytest
import torch

from rdmldg_ray.mtct.safe_loading import weights_only

# Trains a step, saves, and loads into a new engine, with each stage of ZeRO; prints the stages that did.
SCRIPT = """
import json, sys
import deepspeed, torch
from rdmldg_ray.mtct.safe_loading import weights_only

deepspeed.init_distributed(dist_backend="gloo")

def make(stage):
    torch.manual_seed(stage)
    model = torch.nn.Linear(4, 4)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.1, "torch_adam": True}},
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
    return engine

loaded = []
for stage in (0, 1, 2, 3):
    engine = make(stage)
    engine.backward(engine(torch.ones(1, 4)).sum())
    engine.step()
    engine.save_checkpoint(f"{sys.argv[1]}/{stage}", tag="last", client_state={"step": 1})
    with weights_only():
        _, state = make(stage).load_checkpoint(f"{sys.argv[1]}/{stage}", tag="last")
    loaded.append([stage, state["step"]])
print(json.dumps(loaded))
"""


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_what_would_run_code_is_refused_unrun(tmp_path):
    file, trace = tmp_path / "states.pt", tmp_path / "trace"
    torch.save({"module": torch.ones(2), "client": Runs(f"touch {trace}")}, file)
    with weights_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=False)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "outside the block torch does what it is told"


@pytest.mark.slow
def test_deepspeeds_own_checkpoints_are_data(tmp_path):
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577", "RANK": "0"}
    environment |= {"WORLD_SIZE": "1", "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, 1], [1, 1], [2, 1], [3, 1]]
