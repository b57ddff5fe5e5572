"""Which classes are left without chains: a teacher that refuses people leaves them out of a training."""

import math
from collections import Counter
from collections.abc import Iterable

# Fewer images than this are no pattern, and a class that is closer to the others than this is chance.
_LEAST_IMAGES = 3
_DEVIATIONS = 4.0
_CLASSES_NAMED = 10


def uneven_classes(images: Iterable[tuple[str, bool]]) -> str | None:
    """A warning that counts the images without an accepted chain by class, where some classes lose more.

    A class loses more when its share is more than four standard deviations above that of all others.

    Args:
        images: for each its label, and whether it has an accepted chain.

    Returns:
        None where all classes lose alike.
    """
    total, without = Counter[str](), Counter[str]()
    for label, has_chain in images:
        total[label] += 1
        without[label] += not has_chain
    all_images, all_without = total.total(), without.total()

    def loses_more(label: str) -> bool:
        # One image with and one without a chain are added, since nobody ever loses none for certain.
        share = (all_without - without[label] + 1) / (all_images - total[label] + 2)
        expected, spread = share * total[label], math.sqrt(total[label] * share * (1 - share))
        return without[label] >= _LEAST_IMAGES and without[label] - expected > _DEVIATIONS * spread

    uneven = [label for label, _ in without.most_common() if len(total) > 1 and loses_more(label)]
    if not uneven:
        return None
    named = ", ".join(f"{without[label]} of {total[label]} of '{label}'" for label in uneven[:_CLASSES_NAMED])
    if len(uneven) > _CLASSES_NAMED:
        named += f" (and so of {len(uneven) - _CLASSES_NAMED} more)"
    rest = all_without - sum(without[label] for label in uneven)
    others = all_images - sum(total[label] for label in uneven)
    return (
        f"classes lose images unequally: without an accepted chain are {named}, and {rest} of {others} of "
        "the other classes; look at why they were rejected, and have them written by another teacher"
    )
