"""Finding a model's folder and checking it before anything heavy is imported."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from rdmldg_ray.models.families import family_of
from rdmldg_ray.storage import absolute, open_input

TINY_BASE = Path(__file__).parent / "tiny_base"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_INDEX = ".safetensors.index.json"
# Files of which each, where it is there, holds a JSON object.
_OBJECTS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    *_PROCESSOR_FILES,
)
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
# Of these tokenizers of transformers every one has a padding token, whether their files name it or not.
_PAD_BY_DEFAULT = ("Qwen2",)
_LARGEST_HEADER = 100_000_000  # bytes, as in safetensors
# A digest reads files up to this size whole, and of larger ones as many blocks.
_READ_WHOLE = 64 * 2**20
_BLOCKS, _BLOCK = 64, 64 * 2**10


def model_folder(path: str) -> Path:
    """The local folder of a model: ``tiny`` is the packaged one, a hub id is downloaded.

    Raises:
        ValueError: as ``check_model_folder``, and where the hub does not give the model.
    """
    if path == "tiny":
        folder = TINY_BASE
    elif looks_local(path):
        folder = Path(absolute(path))
    else:
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(path, ignore_patterns=["*.bin", "*.pth", "*.gguf", "original/*"]))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model '{path}': no such folder here, and the model hub does not give it "
                f"({type(error).__name__}); correct model.path, or download the model and give its folder"
            ) from error
    check_model_folder(folder)
    return folder


def check_model(path: str) -> None:
    """Check a model setting as far as that is possible without a download.

    Raises:
        ValueError: as ``model_folder``, for ``tiny`` and for local folders.
    """
    if path == "tiny" or looks_local(path):
        model_folder(path)


def check_base_model(path: str) -> None:
    """``check_model`` for a model that is to be trained.

    Raises:
        ValueError: also for a family that is not supported, and for one without a chat template or a padding
            token.
    """
    if path == "tiny" or looks_local(path):
        _check_base(model_folder(path))


def looks_local(path: str) -> bool:
    """Whether a model setting names a folder rather than a hub id such as ``org/name``."""
    return path.startswith((".", "/", "~", "file:")) or Path(path).is_dir()


def check_model_folder(folder: Path) -> None:
    """Check that a saved model is whole, without loading it.

    Raises:
        ValueError: when it is not; the message names the file and the remedy.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder; give 'tiny', a folder or a hub id")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; save the model there with model.save_pretrained")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(
            f"{folder}: no *.safetensors weights; save the model there with model.save_pretrained"
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ValueError(
            f"{folder}: no tokenizer ({', '.join(_TOKENIZER_FILES)}); "
            "save it there with processor.save_pretrained"
        )
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise ValueError(
            f"{folder}: no image processor ({', '.join(_PROCESSOR_FILES)}); "
            "save it there with processor.save_pretrained"
        )
    for name in _OBJECTS:
        _read_object(folder / name)
    found = {name for file in weights for name in tensor_shapes(str(file.absolute()))}
    if not found:
        raise ValueError(f"{weights[0]}: holds no weights; save or download the model again")
    for file in sorted(folder.glob(f"*{_INDEX}")):
        lacking = sorted(set(_read_object(file).get("weight_map", {})) - found)
        if lacking:
            raise ValueError(
                f"{file}: lists {len(lacking)} weights that no file here holds, such as {lacking[0]}; "
                "download or copy the missing *.safetensors"
            )


def _check_base(folder: Path) -> None:
    """Raise ValueError for a whole model that cannot be trained here."""
    family_of(folder)
    settings = {name: _read_object(folder / name) for name in _OBJECTS}
    if not any((folder / name).is_file() for name in _TEMPLATE_FILES) and not any(
        content.get("chat_template") for content in settings.values()
    ):
        raise ValueError(
            f"{folder}: no chat template ({', '.join(_TEMPLATE_FILES)}, or in tokenizer_config.json); a base "
            "model without one is not trained here: give its instruction-tuned version, or save a template "
            "there with processor.save_pretrained"
        )
    tokenizer = settings["tokenizer_config.json"]
    told = tokenizer.get("pad_token") or settings["special_tokens_map.json"].get("pad_token")
    if not told and not str(tokenizer.get("tokenizer_class", "")).startswith(_PAD_BY_DEFAULT):
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: names no pad_token, and batches are padded; set it to a "
            "token that the tokenizer has, such as its end-of-text token, and save the processor again"
        )


def _read_object(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is not there."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is not valid JSON ({error}); save or download the model again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds no JSON object; save or download the model again")
    return content


def tensor_shapes(file: str) -> dict[str, list[int]]:
    """The shapes of a safetensors file's tensors by name, from its header alone.

    Args:
        file: an absolute path or a URI.

    Raises:
        ValueError: for a file that is missing, empty, cut, or not of safetensors' format.
    """
    # https://github.com/huggingface/safetensors#format
    with open_input(file) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        try:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"{size} bytes do not hold its header")
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
            if 8 + length + end != size:
                raise ValueError(f"{size} bytes, and its header tells of {8 + length + end}")
            return {name: list(tensor["shape"]) for name, tensor in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(
                f"{file}: cut or no safetensors file ({error}); download, copy or save it again"
            ) from None


def model_digest(path: str) -> str:
    """What tells a model from another under the same setting: of a local folder a digest of its files.

    Large files are read in a few places only, which another training of the same model changes as well. A
    hub id stands for itself.
    """
    if path != "tiny" and not looks_local(path):
        return path
    folder = TINY_BASE if path == "tiny" else Path(absolute(path))
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".jinja", ".safetensors", ".model", ".txt"):
            size = file.stat().st_size
            digest.update(f"{file.name}\0{size}\0".encode())
            with file.open("rb") as stream:
                if size <= _READ_WHOLE:
                    digest.update(stream.read())
                    continue
                for number in range(_BLOCKS):
                    stream.seek(number * (size - _BLOCK) // (_BLOCKS - 1))
                    digest.update(stream.read(_BLOCK))
    return digest.hexdigest()
