import numpy as np
import pyarrow as pa

from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.evaluation.baselines import cnn_answers, image_features, probe_answers
from tools import mini


def test_a_probe_answers_by_what_holds_in_all_domains_and_chooses_by_validation():
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    domains = np.repeat(["a", "b", "c"], 80)
    features = rng.normal(size=(240, 12)).astype(np.float32)
    features[np.arange(240), labels] += 3
    source = domains != "c"
    validate = source & (rng.random(240) < 0.2)
    answers = probe_answers(features, labels, domains.tolist(), source & ~validate, validate)
    assert (answers == labels)[~source].mean() > 0.9
    # Scaled by the training images alone: what lies elsewhere in a target does not reach the others' answers.
    moved = np.where(source[:, None], features, features + 100)
    assert (probe_answers(moved, labels, domains.tolist(), source & ~validate, validate) == answers)[
        source
    ].all()


def test_the_cnn_learns_from_the_training_images_alone_and_is_fixed_by_its_seed(mini_root):
    samples = _samples(mini_root)
    flat = np.asarray(samples["domain"].to_pylist()) == "flat"
    labels = samples["label_id"].to_numpy()
    answers = cnn_answers(samples, labels, flat, augment=False, seed=1, epochs=45)
    assert (answers == labels)[flat].mean() > 0.9
    wrong_elsewhere = np.where(flat, labels, (labels + 1) % 3)
    assert (cnn_answers(samples, wrong_elsewhere, flat, augment=False, seed=1, epochs=45) == answers).all()


def test_features_are_of_the_vision_encoder_one_row_for_each_image(mini_root):
    samples = _samples(mini_root).slice(0, 3)
    config = load_config("demo", ["data.dataset=mini", f"storage={mini_root}"])
    features = image_features(config, list(mini.CLASSES), samples)
    assert features.shape[0] == 3 and features.dtype == np.float32
    again = image_features(
        config, list(mini.CLASSES), pa.Table.from_batches(samples.slice(1, 1).to_batches())
    )
    np.testing.assert_allclose(features[1], again[0], rtol=1e-5)


def _samples(root):
    return sample_index(str(root), read_dataset_info(str(root), mini.NAME), mini.DOMAINS)
