"""The artwork that the tiny base model learns from: pinned packages, and what is left out of them.

Every package is an npm tarball pinned by version and SHA-256. IconBed's own four sets (noto,
fluent-emoji, twemoji, openmoji black) are not among them, and no concept of IconBed is taken from
any other set: not by code point, and not by name.
"""

import hashlib
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """A pinned package of drawings. ``kind``: emoji (names are Unicode's), colour or line icons."""

    package: str
    version: str
    sha256: str
    licence: str
    author: str
    kind: str


EMOJI_NAMES = Source(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT, texts Unicode-3.0",
    "Miles Johnson; Unicode, Inc.",
    "names",
)

SOURCES = tuple(
    Source(f"@iconify-json/{name}", version, sha256, licence, author, kind)
    for name, version, sha256, licence, author, kind in (
        ("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
         "Apache-2.0", "Google Inc", "emoji"),
        ("fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
         "Apache-2.0", "Mozilla", "emoji"),
        ("emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
         "CC-BY-4.0", "Emoji One", "emoji"),
        ("emojione-v1", "1.2.3", "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
         "CC-BY-SA-4.0", "Emoji One", "emoji"),
        ("emojione-monotone", "1.2.1", "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e",
         "CC-BY-4.0", "Emoji One", "emoji"),
        ("streamline-emojis", "1.2.4", "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
         "CC-BY-4.0", "Streamline", "emoji"),
        ("openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
         "CC-BY-SA-4.0", "OpenMoji", "emoji"),
        ("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
         "MIT", "Microsoft Corporation", "emoji"),
        ("fluent-emoji-high-contrast", "1.2.6",
         "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
         "MIT", "Microsoft Corporation", "emoji"),
        ("flat-color-icons", "1.2.3", "d8878a9b0f02d749bc8671eb7d47882eb711185cbcefbb365cbfb488773c4786",
         "MIT", "Icons8", "colour"),
        ("streamline-freehand-color", "1.2.2",
         "00d74cbddaf1bcf35c8614ac0544d10af69c7cee8801475473fe424ee0c0c642",
         "CC-BY-4.0", "Streamline", "colour"),
        ("streamline-ultimate-color", "1.2.2",
         "46133a11f3734bcef29066391d7edc141ed1d8056242ddfa1b5d36ce286420b6",
         "CC-BY-4.0", "Streamline", "colour"),
        ("icon-park", "1.2.4", "c1a25212a31602aca93c3fa6f6b3288e89b9d7811afc132dfd78506e9d586b6f",
         "Apache-2.0", "ByteDance", "colour"),
        ("game-icons", "1.2.4", "f5758efb34d91c4f50b941f355f16ee73938625e5996fabc25171288404460a4",
         "CC-BY-3.0", "GameIcons", "line"),
        ("healthicons", "1.2.13", "4c2552c45737788a6599da3c5b72610c7fb4e7f87075d401c56fa16d487d4caf",
         "MIT", "Resolve to Save Lives", "line"),
        ("lucide", "1.2.137", "e74db8c3a55fff55bc82de21268c4bced9f65ff10aacc0d5f3a395b0e93243c3",
         "ISC", "Lucide Contributors", "line"),
        ("mdi", "1.2.3", "ddd817a7213f91de51147943915c0cda8c8b818a53c92b5c068cfa9883c6d7ac",
         "Apache-2.0", "Pictogrammers", "line"),
        ("ph", "1.2.2", "e3a582a047d9829fc7e8842c660d8065e598d1b68bb58cb68e75a1f1e5a614cc",
         "MIT", "Phosphor Icons", "line"),
        ("tabler", "1.2.41", "3bf99af156d28d05568aff524a35ed1ba238df640a7835a5e02e1f8e439685f6",
         "MIT", "Paweł Kuna", "line"),
    )
)  # fmt: skip

# Words of IconBed's names that say nothing about the thing itself ("hot beverage", "fire engine").
_GENERAL_WORDS = """
and of on in out with without the baby lady hatching classical convenience department derelict hindu
japanese love office post tokyo ballet flat high heeled one piece martial arts man woman running safety
top popping clinking hot tropical guide ear bone leg food shallow four fluttering wind christmas fallen
wilted spiral spouting straight triangular articulated auto bullet delivery fire speed kick light motor
oncoming police racing sport utility red face box handle old s pot
"""
# Words for IconBed's classes, and other names of its concepts, for icon sets that name things freely.
_KINDRED_WORDS = """
bird bug insect building clothing clothes drink beverage mammal animal pet meal plant tree flower produce
fruit vegetable vegetables veggie sea ocean tool tools vehicle car cars cab taxi van truck lorry bike
biking motorbike cycling rail railway subway metro puppy kitten bunny hare rat ox bull cattle calf buffalo
sheep lamb ram goat pony donkey hen cock chick duckling hawk falcon crow raven sparrow pigeon toucan
seagull pelican ostrich whale orca clam shell prawn salmon tuna bass crayfish moth bee wasp hornet ladybug
ladybird tarantula slug larva centipede mantis coffee tea cafe mug espresso latte juice soda cola martini
whiskey whisky vodka brandy champagne liquor alcohol bottle water burger fries noodle noodles pasta ramen
soup stew dessert cake muffin donut bakery toast steak sausage ham drumstick cheese egg fried kebab
dumpling sushi shirt tshirt tee blouse jacket hoodie sweater trousers pants skirt gown robe sneaker
sneakers shoes slipper heel heels tie bowtie bra underwear bathrobe apron mitten mittens cap hat beanie
helmet sock boots vest suit home apartment skyscraper warehouse cottage cabin barn villa shop market
chapel cathedral pagoda shrine tent museum university courthouse spanner drill pliers saw chainsaw shovel
spade rake brush cog gears settings pickaxe hatchet bolt nail screw cherry citrus orange lime berry
berries raspberry plum olive pomegranate papaya apple corn wheat barley grain grass fern bush ivy clover
leaf leaves sprout bonsai pine oak palm bamboo bloom petal chili chilli pepper radish turnip beet cabbage
lettuce salad pumpkin bean beans pea peas nut nuts almond chestnut mushroom paw feline canine hound doggy
hog boar piglet stag antelope moose reindeer elk hyena panther leopard jaguar cheetah lioness ape
chimpanzee orangutan squirrel hedgehog beaver otter skunk badger sloth panda koala hippo hippopotamus
llama alpaca rodent hamster banking wed aubergine boba sapling stiletto pickle gherkin maggot flatbed
trolley tramway shrub forest jungle woods aquarium birdhouse birdcage hummingbird fishing fishbowl
fishbone fisheye clownfish flatfish porcupinefish goldfish catfish carp buggy caravan carriage wagon jeep
suv minivan moped toolkit webhook gearbox sawblade jigsaw saucepan scallion milkshake skullcap panties
lingerie dragonfly beehive beekeeper werewolf direwolf shoebill leafy orchid daisy lily anemone deathcab
firefox flying flytrap piggy yurt igloo mansion farm greenhouse
"""


def read_iconbed(parquet: Path) -> tuple[set[str], set[str], set[str]]:
    """What IconBed holds: its code points (hex), its names, and the words that no other name may have."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(parquet, columns=["hexcode", "cldr_name"]).to_pylist()
    names = {row["cldr_name"].lower() for row in rows}
    words = {word for name in names for word in name_words(name)} | set(_KINDRED_WORDS.split())
    whole = {" ".join(name_words(name)) for name in names}
    return {row["hexcode"] for row in rows}, names, words - set(_GENERAL_WORDS.split()) | whole


def name_words(name: str) -> list[str]:
    """Words of a name in lower case: ``Billed-cap`` gives billed, cap."""
    return re.findall(r"[a-z]+", name.lower())


def names_left_out(name: str, forbidden: set[str]) -> bool:
    """Whether a name has a forbidden word, in the singular or the plural, or run together with another.

    A forbidden name of several words, "post office", must be in the name with all its words.
    """
    words = set(name_words(name))
    if any(words.issuperset(other.split()) for other in forbidden if " " in other):
        return True
    for word in words:
        forms = {word, word.removesuffix("s"), word.removesuffix("es"), word + "s", word + "es"}
        if forms & forbidden:
            return True
        # Long words inside a compound: "housefly", "goldfish", "motorcyclist".
        if any(len(other) > 4 and (word.startswith(other) or word.endswith(other)) for other in forbidden):
            return True
    return False


def fetch(source: Source, folder: Path) -> Path:
    """The tarball of a package, downloaded once with npm and checked against its SHA-256."""
    target = folder / (source.package.strip("@").replace("/", "-") + f"-{source.version}.tgz")
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"{source.package}@{source.version}", "--pack-destination", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise ValueError(f"{target.name} has SHA-256 {digest}, expected {source.sha256}")
    return target


def read_json(tarball: Path, name: str) -> Any:
    """A JSON file of an npm tarball, by its path inside the package."""
    with tarfile.open(tarball) as archive:
        member = archive.extractfile(f"package/{name}")
        assert member is not None, f"{tarball.name} has no file {name}"
        return json.load(member)
