"""From a listing of files to a data set: environments, classes, and the order in which they are counted.

The order is ImageFolder's of torchvision, on which DomainBed's splits rest: environments sorted, classes
sorted, and below a class the folders in sorted order, each with its files sorted; all by plain string
order.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rdmldg_ray.datasets.ingest.archives import Reject, SourceFile
from rdmldg_ray.datasets.ingest.names import class_fault, domain_fault, printable
from rdmldg_ray.domainbed.catalogue import DATASETS, Dataset

# Folders of splits, which stand between domain and class in some downloads.
_SPLITS = frozenset(
    ("train", "training", "test", "testing", "val", "valid", "validation", "crossval", "dev", "eval", "full")
)
# What ImageFolder lists, in any case of letters.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class ImageFolder:
    """A data set as its folders say it is.

    Attributes:
        environments: the files of each environment in ImageFolder order; the environments are sorted.
        classes: of all environments, sorted.
        prefix: the folder within the source that holds the environments, with a slash at its end, or "".
        rejects: files that ImageFolder would not list.
        notes: what is allowed, and may be a mistake.
    """

    environments: Mapping[str, Sequence[SourceFile]]
    classes: tuple[str, ...]
    prefix: str
    rejects: Sequence[Reject]
    notes: Sequence[str] = ()

    def place(self, file: SourceFile) -> tuple[str, str, str]:
        """A listed file's environment, class, and path within the environment."""
        environment, path = file.path.removeprefix(self.prefix).split("/", 1)
        return environment, path.split("/", 1)[0], path

    def missing_classes(self) -> dict[str, list[str]]:
        """Environments that lack classes which others have."""
        present: dict[str, set[str]] = defaultdict(set)
        for environment, files in self.environments.items():
            present[environment] = {self.place(file)[1] for file in files}
        return {
            environment: lacking
            for environment in self.environments
            if (lacking := [name for name in self.classes if name not in present[environment]])
        }


def find_image_folder(
    location: str, files: Iterable[SourceFile], dataset: str, empty: Iterable[str] = ()
) -> ImageFolder:
    """Sort files into environments and classes, and check them against the catalogue.

    Environments may lie below other folders, as archives have them. Those of a known data set are found
    by their names; for one that is not in the catalogue, a single folder around everything is passed.

    Args:
        location: of the source, for messages.
        dataset: name of a data set of the catalogue, or any other.
        empty: folders without a file, which are noted.

    Raises:
        ValueError: when the folders are not ``<environment>/<class>/<file>``, not those of the catalogue, or
            have names that cannot be used; the message says what was found and what was expected.
    """
    known = DATASETS.get(dataset)
    images, rejects = [], []
    for file in files:
        if file.path.lower().endswith(EXTENSIONS):
            images.append(file)
        else:
            message = f"{file.path}: not a name of an image; known are {', '.join(EXTENSIONS)}"
            rejects.append(Reject(file.path, file.size, "extension", message))
    # Far fewer than files.
    folders = {folder: folder.split("/") if folder else [] for folder in map(_folder, images)}
    distinct = list(folders.values())
    prefix = _known_prefix(location, distinct, known) if known else _wrapping_prefix(distinct)
    start = "".join(folder + "/" for folder in prefix)

    environments: dict[str, list[SourceFile]] = defaultdict(list)
    for file in images:
        folder = folders[_folder(file)]
        below = folder[len(prefix) :]
        if folder[: len(prefix)] != prefix or len(below) < 2:
            message = f"{file.path}: not in {start}<environment>/<class>/"
            if start and not file.path.startswith(start):
                message += f"; to leave it out, give the folder {start.rstrip('/')} itself"
            rejects.append(Reject(file.path, file.size, "place", message))
        else:
            environments[below[0]].append(file)
    if not environments:
        raise ValueError(
            f"{location}: no image is in <environment>/<class>/; give the folder that holds the environments"
        )
    depth = len(prefix) + 1
    ordered = {name: _in_image_folder_order(environments[name], depth) for name in sorted(environments)}
    classes = {file.path.split("/")[depth] for files in environments.values() for file in files}
    notes = _empty_notes([folder.split("/") for folder in empty], prefix, ordered)
    if _SPLITS.issuperset(name.lower() for name in ordered):
        notes.append(f"note: {', '.join(ordered)} are called as splits are, not as domains")
    layout = ImageFolder(ordered, tuple(sorted(classes)), start, rejects, notes)
    _check_splits(location, layout)
    _check_names(location, layout)
    if known:
        _check_catalogue(location, layout, known)
    return layout


def _folder(file: SourceFile) -> str:
    return file.path.rpartition("/")[0]


def _in_image_folder_order(files: Iterable[SourceFile], depth: int) -> list[SourceFile]:
    """Sort an environment's files; ``depth`` is the class's place in their paths."""

    def key(file: SourceFile) -> tuple[str, str, str]:
        # Of folders below a class the whole strings are sorted, not their parts; but the class comes
        # first: "dog/x" before "dog-2", although "-" sorts before "/".
        folder, _, name = file.path.rpartition("/")
        return file.path.split("/")[depth], folder, name

    return sorted(files, key=key)


def _wrapping_prefix(folders: Sequence[Sequence[str]]) -> list[str]:
    prefix: list[str] = []
    # One folder around at least <environment>/<class>/ in every case is only a wrapping.
    while folders and all(
        len(folder) > len(prefix) + 2 and folder[: len(prefix) + 1] == folders[0][: len(prefix) + 1]
        for folder in folders
    ):
        prefix.append(folders[0][len(prefix)])
    return prefix


def _empty_notes(
    empty: Sequence[Sequence[str]], prefix: Sequence[str], environments: Iterable[str]
) -> list[str]:
    """Words on empty folders where a domain or a class is expected."""
    below = [list(folder[len(prefix) :]) for folder in empty if list(folder[: len(prefix)]) == list(prefix)]
    known = set(environments)
    notes = []
    for path in below:
        if len(path) == 1:
            notes.append(f"note: the folder {path[0]} holds no file, and is no domain")
        elif len(path) == 2 and path[0] in known:
            notes.append(f"note: the folder {'/'.join(path)} holds no file")
    return notes


def _check_splits(location: str, layout: ImageFolder) -> None:
    """Refuse ``<domain>/train/<class>``, of which the splits would become the classes."""
    for domain, files in layout.environments.items():
        places = [layout.place(file) for file in files]
        splits = {name for _, name, _ in places}
        nested = any(path.count("/") > 1 for _, _, path in places)
        if _SPLITS.issuperset(name.lower() for name in splits) and (nested or len(splits) > 1):
            raise ValueError(
                f"{location}: the folders below {domain} are called {', '.join(sorted(splits))}: splits, not "
                f"classes; move what is in {domain}/<split>/<class>/ to {domain}/<class>/, each image once "
                "(splits are drawn by DomainBed's rule)"
            )


def _check_names(location: str, layout: ImageFolder) -> None:
    for kind, names, fault_of in (
        ("domain", layout.environments, domain_fault),
        ("class", layout.classes, class_fault),
    ):
        for name in names:
            if fault := fault_of(name):
                raise ValueError(
                    f"{location}: the name of the {kind} '{printable(name)}' {fault}; rename its folder"
                )


def _known_prefix(location: str, folders: Sequence[Sequence[str]], known: Dataset) -> list[str]:
    found: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for folder in folders:
        for depth, name in enumerate(folder):
            if name in known.environments:
                found[tuple(folder[:depth])].add(name)
    complete = [prefix for prefix, names in found.items() if len(names) == len(known.environments)]
    if complete:
        shortest: tuple[str, ...] = min(sorted(complete), key=len)
        return list(shortest)
    if renamed := _other_spelling(folders, known):
        raise ValueError(f"{location}: not yet {known.title}: {renamed}, or ingest it as custom")
    top = sorted({"/".join(folder[:2]) for folder in folders})
    found_folders = f"{', '.join(top[:8])}{', ...' if len(top) > 8 else ''}" if top else "no image"
    raise ValueError(
        f"{location}: not {known.title}: expected the folders {', '.join(known.environments)}; found "
        f"{found_folders}; correct the path, or ingest it as custom"
    )


def _other_spelling(folders: Sequence[Sequence[str]], known: Dataset) -> str | None:
    """How to rename folders that are called otherwise than the catalogue's; None where none is."""
    found: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for folder in folders:
        for depth, name in enumerate(folder):
            if environment := known.environment(name):
                found[tuple(folder[:depth])].setdefault(environment, name)
    best = max(found.values(), key=len, default={})
    if len(best) < min(2, len(known.environments)):
        return None
    remedies = [f"rename '{name}' to '{meant}'" for meant, name in sorted(best.items()) if name != meant]
    if lacking := [name for name in known.environments if name not in best]:
        remedies.append(f"add the folder {', '.join(lacking)}, which is missing")
    return "; ".join(remedies)


def _check_catalogue(location: str, layout: ImageFolder, known: Dataset) -> None:
    surplus = [name for name in layout.environments if name not in known.environments]
    if surplus:
        raise ValueError(
            f"{location}: not {known.title}: it has no environment {', '.join(surplus)}; remove what does "
            "not belong to it, or ingest it as custom"
        )
    names = layout.classes
    wrong = known.class_names is not None and names != known.class_names
    if len(names) != known.num_classes or wrong:
        expected = f" ({', '.join(known.class_names)})" if known.class_names else ""
        remedy = "remove what does not belong to it"
        if len(names) < known.num_classes:
            remedy = "add what is missing"
        elif known.class_names and set(known.class_names) - set(names):
            remedy = "rename or add what is missing"
        raise ValueError(
            f"{location}: not {known.title}: expected {known.num_classes} classes{expected}; found "
            f"{len(names)}: {', '.join(names)}; {remedy}, or ingest it as custom"
        )
