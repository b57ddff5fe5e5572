"""The data sets that are in the package, by name."""

from rdmldg_ray.datasets.builtin import questions
from rdmldg_ray.datasets.builtin.iconbed import iconbed_info, write_iconbed
from rdmldg_ray.datasets.schema import DatasetInfo, info_location, read_dataset_info
from rdmldg_ray.domainbed.catalogue import ICONBED
from rdmldg_ray.storage import exists

_EMBEDDED = {
    ICONBED.name: (iconbed_info, write_iconbed),
    questions.NAME: (questions.iconbed_vqa_info, questions.write_iconbed_vqa),
}

EMBEDDED_NAMES = tuple(_EMBEDDED)


def is_embedded(name: str) -> bool:
    """Whether the package has a data set of that name, with chains of the teacher of rules."""
    return name in _EMBEDDED


def embedded_info(name: str) -> DatasetInfo:
    """What an embedded data set holds, whether it is on storage or not."""
    return _EMBEDDED[name][0]()


def find_info(root: str, name: str) -> DatasetInfo:
    """What a data set on storage holds, or an embedded one that is not written yet; writes nothing.

    Raises:
        ValueError: when it is neither.
    """
    if is_embedded(name) and not exists(info_location(root, name)):
        return embedded_info(name)
    return read_dataset_info(root, name)


def write_embedded(root: str, name: str) -> None:
    """Lay a data set down on storage if it is an embedded one and not there yet.

    Raises:
        ValueError: when the storage cannot be written.
    """
    if name in _EMBEDDED:
        _EMBEDDED[name][1](root)
