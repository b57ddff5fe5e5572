import numpy as np
import pyarrow as pa
import pytest

from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.evaluation.clip import Clip, embed_samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    """A small CLIP with random weights, with the tiny base's tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=processor.tokenizer.backend_tokenizer,
        model_max_length=24,
        pad_token=processor.tokenizer.pad_token,
        eos_token=processor.tokenizer.eos_token,
    )
    text = small | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = small | {"image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_images_and_chains_longer_than_clips_context_are_embedded(folder, store, info, rows):
    samples = sample_index(store, info, ["flat"]).slice(0, 3)
    samples = samples.append_column("chain", pa.array([row["chain"] for row in rows[:3]]))
    found = embed_samples(folder, samples)
    assert [(row["id"], row["kind"]) for row in found.to_pylist()] == [
        (id, kind) for id in samples["id"].to_pylist() for kind in ("image", "chain")
    ]
    vectors = np.array(found["vector"].to_pylist())
    assert vectors.shape == (6, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors[0], vectors[2])


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json here; give the folder of a CLIP model"):
        Clip(tmp_path)
