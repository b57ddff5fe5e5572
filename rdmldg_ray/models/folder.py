"""Finding a model's folder and checking it before anything heavy is imported."""

from pathlib import Path

TINY_BASE = Path(__file__).parent / "tiny_base"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def model_folder(path: str) -> Path:
    """The local folder of a model: ``tiny`` is the packaged one, a hub id is downloaded.

    Raises:
        ValueError: for a folder without a config, weights, a tokenizer or an image processor.
    """
    if path == "tiny":
        folder = TINY_BASE
    elif looks_local(path):
        folder = Path(path).expanduser()
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


def looks_local(path: str) -> bool:
    """Whether a model setting names a folder rather than a hub id such as ``org/name``."""
    return path.startswith((".", "/", "~")) or Path(path).is_dir()


def check_model_folder(folder: Path) -> None:
    """Raise ValueError, naming the remedy, when a part of a saved model is missing."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder; give 'tiny', a folder or a hub id")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; save the model there with model.save_pretrained")
    if not any(folder.glob("*.safetensors")):
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
