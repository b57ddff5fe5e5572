"""Yardsticks that are not this method: a linear probe on the base's image features, and ERM with a small CNN.

Both learn from the source domains' ``in`` parts alone; what is chosen is chosen by their ``out`` parts, as in
DomainBed (Gulrajani and Lopez-Paz, arXiv 2007.01434).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional

from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.evaluation.probe import Probe
from rdmldg_ray.mtct.augment import augment_image
from rdmldg_ray.storage import read_images

_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
_CNN_SIZE = 64
_CNN_BATCH = 64
_CNN_WIDTHS = (32, 64, 128, 256)


def image_features(config: Config, class_names: list[str], samples: pa.Table) -> np.ndarray:
    """(N, d) float32: the base's vision encoder, averaged over an image's patches."""
    probe = Probe(config, class_names, adapter=None)
    images = zip(samples["id"].to_pylist(), read_images(samples), strict=True)
    return np.stack([probe.embed_patches(decode_image(sample_id, data)) for sample_id, data in images])


def probe_answers(
    features: np.ndarray, labels: np.ndarray, domains: Sequence[str], train: np.ndarray, validate: np.ndarray
) -> np.ndarray:
    """(N,) class ids: multinomial logistic regression on features that are scaled by the training images'.

    Its weight decay is the one of four with the best mean validation accuracy over domains; of equals the
    largest.

    Args:
        features: (N, d), of all images.
        labels: (N,) class ids.
        domains: (N,) names.
        train, validate: (N,) masks.
    """
    x = torch.from_numpy((features - features[train].mean(0)) / (features[train].std(0) + 1e-6))
    y = torch.from_numpy(labels).long()
    best, answers = -1.0, np.zeros(len(labels), dtype=np.int64)
    for decay in _DECAYS:
        found = _logistic_regression(x[train], y[train], int(labels.max()) + 1, decay)(x).argmax(1).numpy()
        accuracy = _mean_over_domains(found == labels, np.asarray(domains), validate)
        if accuracy >= best:
            best, answers = accuracy, found
    return answers


def cnn_answers(
    samples: pa.Table, labels: np.ndarray, train: np.ndarray, augment: bool, seed: int, epochs: int = 60
) -> np.ndarray:
    """(N,) class ids: a CNN of four convolutions, trained from scratch on images of 64 pixels.

    Args:
        samples: an index of N images.
        labels: (N,) class ids.
        train: (N,) mask.
        augment: as DomainBed does.
        seed: of the weights, the order and the augmentation.
    """
    rows = zip(samples["id"].to_pylist(), read_images(samples), strict=True)
    images = [decode_image(sample_id, data).resize((_CNN_SIZE, _CNN_SIZE)) for sample_id, data in rows]
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = _small_cnn(int(labels.max()) + 1)
    places = np.flatnonzero(train)
    batches = -(-len(places) // _CNN_BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(places), batches):
            shown = [augment_image(images[i], rng) if augment else images[i] for i in batch]
            loss = functional.cross_entropy(model(_pixels(shown)), torch.from_numpy(labels[batch]).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        parts = [images[i : i + _CNN_BATCH] for i in range(0, len(images), _CNN_BATCH)]
        return np.concatenate([model(_pixels(part)).argmax(1).numpy() for part in parts])


def _logistic_regression(x: torch.Tensor, y: torch.Tensor, classes: int, decay: float) -> nn.Linear:
    model = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y) + decay * model.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def _small_cnn(classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    before = 3
    for width in _CNN_WIDTHS:
        convolution = nn.Conv2d(before, width, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        before = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(before, classes)
    )


def _pixels(images: Sequence[object]) -> torch.Tensor:
    """(B, 3, 64, 64) between -1 and 1."""
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def _mean_over_domains(right: np.ndarray, domains: np.ndarray, rows: np.ndarray) -> float:
    return float(np.mean([right[rows & (domains == domain)].mean() for domain in np.unique(domains[rows])]))
