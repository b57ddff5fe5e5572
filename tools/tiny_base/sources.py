"""The artwork that the tiny base model learns from: pinned packages, and what must never be among them.

Every package is an npm tarball pinned by version and SHA-256. The base may learn IconBed's concepts and
class words from other artists' drawings. It never sees a drawing of IconBed's four sets, nor a sibling
of one (the same hands, lines or finish): those packages are named here, and `pictures.prepare` drops
every drawing that comes close to one of IconBed's all the same.
"""

import hashlib
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# IconBed's four sets and their siblings, by the beginning of a package's name without its scope.
NEVER = ("noto", "fluent-emoji", "twemoji", "openmoji", "svgmoji", "blobmoji")
# Google's first emoji, drawn anew as the set that IconBed has: other drawings, by another design.
OTHER_DRAWINGS = ("noto-v1",)


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
        ("flat-color-icons", "1.2.3", "d8878a9b0f02d749bc8671eb7d47882eb711185cbcefbb365cbfb488773c4786",
         "MIT", "Icons8", "colour"),
        ("streamline-freehand-color", "1.2.2",
         "00d74cbddaf1bcf35c8614ac0544d10af69c7cee8801475473fe424ee0c0c642",
         "CC-BY-4.0", "Streamline", "colour"),
        ("streamline-ultimate-color", "1.2.2",
         "46133a11f3734bcef29066391d7edc141ed1d8056242ddfa1b5d36ce286420b6",
         "CC-BY-4.0", "Streamline", "colour"),
        ("streamline-kameleon-color", "1.2.2",
         "5f972d986afb340d8a45d7a16e767f99f91fdd94db53e46a78c79847212aed7b",
         "CC-BY-4.0", "Streamline", "colour"),
        ("streamline-plump-color", "1.2.2",
         "33ed8a9ebda9ed896125f1e01873105688d68d0b0c95ca1bcead5a41309afcf6",
         "CC-BY-4.0", "Streamline", "colour"),
        ("streamline-cyber-color", "1.2.2",
         "bc71bb624b8a500841e2e47c0175bf13dfb99b38a6ddc2421d3ac21331e21eac",
         "CC-BY-4.0", "Streamline", "colour"),
        ("streamline-flex-color", "1.2.2", "17ef2e9d596bb288991c271a2b468be822f994cb073c94801a1c186a0e4af827",
         "CC-BY-4.0", "Streamline", "colour"),
        ("streamline-stickies-color", "1.2.2",
         "e96b8b2bbe1efde22272c420a75024b4b2c7e224ec1f323c93a421a07410971e",
         "CC-BY-4.0", "Streamline", "colour"),
        ("icon-park", "1.2.4", "c1a25212a31602aca93c3fa6f6b3288e89b9d7811afc132dfd78506e9d586b6f",
         "Apache-2.0", "ByteDance", "colour"),
        ("game-icons", "1.2.4", "f5758efb34d91c4f50b941f355f16ee73938625e5996fabc25171288404460a4",
         "CC-BY-3.0", "GameIcons", "line"),
        ("healthicons", "1.2.13", "4c2552c45737788a6599da3c5b72610c7fb4e7f87075d401c56fa16d487d4caf",
         "MIT", "Resolve to Save Lives", "line"),
        ("lucide", "1.2.137", "e74db8c3a55fff55bc82de21268c4bced9f65ff10aacc0d5f3a395b0e93243c3",
         "ISC", "Lucide Contributors", "line"),
        ("lucide-lab", "1.2.3", "ea0a3dc587d60e65b4e710f2239a54a6609fcd19b214f9eb0df66874f920df08",
         "ISC", "Lucide Contributors", "line"),
        ("mdi", "1.2.3", "ddd817a7213f91de51147943915c0cda8c8b818a53c92b5c068cfa9883c6d7ac",
         "Apache-2.0", "Pictogrammers", "line"),
        ("ph", "1.2.2", "e3a582a047d9829fc7e8842c660d8065e598d1b68bb58cb68e75a1f1e5a614cc",
         "MIT", "Phosphor Icons", "line"),
        ("tabler", "1.2.41", "3bf99af156d28d05568aff524a35ed1ba238df640a7835a5e02e1f8e439685f6",
         "MIT", "Paweł Kuna", "line"),
        ("hugeicons", "1.2.35", "cca09de913319938961fa0613a8eb42952f76c3ee13a7c68ef411091590c5d8b",
         "MIT", "Hugeicons", "line"),
        ("mingcute", "1.2.8", "fec65f4430ac70a968e0e7fc7741e7064ba91e6da992b905f75c9d70c717bd2c",
         "Apache-2.0", "MingCute Design", "line"),
        ("material-symbols", "1.2.98", "142d50bf28e7db85362795be335ebc29dac611d73c404fc1e6fc5cc198e2b3d0",
         "Apache-2.0", "Google", "line"),
        ("fa6-solid", "1.2.4", "082c792eaad4751626438773fa7360cb23f495b687cf2dd01b2b0fccc7f6af8b",
         "CC-BY-4.0", "Dave Gandy", "line"),
        ("streamline", "1.2.5", "b64ca35d4d9fb1f6e730d260ab59e1ded79b23d9f156f8d2f458df6a7aa4cf53",
         "CC-BY-4.0", "Streamline", "line"),
        ("streamline-ultimate", "1.2.2", "e09225d443837eddfed5ba6c4d5bd454aa7167a914ea6c45db270fd4eecc7c0f",
         "CC-BY-4.0", "Streamline", "line"),
        ("streamline-plump", "1.2.0", "e158c4e47a0fd030b028c511b6eebb27ee4fad68710e47670b0099604fd5077c",
         "CC-BY-4.0", "Streamline", "line"),
        ("streamline-freehand", "1.2.1", "82aaac29eea268746717e37ea498f3a31bc7df97cf3faf4e0852e9f9bfac0bdf",
         "CC-BY-4.0", "Streamline", "line"),
        ("iconoir", "1.2.11", "8e5d3bfbd55aa8ef3878f0c2f248cf71fe99822172fd07990e32ab7fe7a68b1e",
         "MIT", "Luca Burgio", "line"),
        ("solar", "1.2.13", "9efec9045e9188c5dd5cf9de52f8ad968ffabee565026480a6c74bfe63b3bbc2",
         "CC-BY-4.0", "480 Design", "line"),
        ("temaki", "1.2.6", "24a874e1d81a7de9d56e534fdc56287cfe6e73488a24ef5c8982d4fd5f294d8d",
         "CC0-1.0", "Bryan Housel", "line"),
        ("maki", "1.2.5", "cbf41d1b7262fad2eecdc6425ae5afed2de9b3512093c4c778fb456e788d7e12",
         "CC0-1.0", "Mapbox", "line"),
        ("guidance", "1.2.2", "87a0b6a5791954a33c8694bfdb2635d38d1226bfbd3f58f853e036b365bd30fb",
         "CC-BY-4.0", "Streamline", "line"),
        ("la", "1.2.1", "c35ad2a463fc30d3153a36dd614d4007a4f0ee7ea93705e035e1687d516d48c4",
         "Apache-2.0", "Icons8", "line"),
        ("tdesign", "1.2.19", "af53c40f637023517d6a65f609c844d74ad33362b221de971e9579e252a3b8cb",
         "MIT", "TDesign", "line"),
        ("uil", "1.2.3", "8c6c7e7943243ab1254111b175089ec9a8f414f3b4a005883739de015b7ab890",
         "Apache-2.0", "Iconscout", "line"),
        ("ion", "1.2.7", "4103445dba712aa0f6d119706df00b2e821634f9ca96faac5ddbfb3bad65927f",
         "MIT", "Ben Sperry", "line"),
        ("ri", "1.2.10", "f7ab45281b250fb0bfa5c5438fc334f010cbf695f5ac851b90b296ef4674fb07",
         "Apache-2.0", "Remix Design", "line"),
        ("carbon", "1.2.29", "8e3059dc90933875439c29ff36ae4370767bc02d8beca6923b1f2bb856cf327a",
         "Apache-2.0", "IBM", "line"),
        ("icons8", "1.2.1", "3c425ed4b57c9eb5017f73f70f158fc892c6c5fabd8b53a522a1b2433aec45f7",
         "MIT", "Icons8", "line"),
        ("vaadin", "1.2.1", "e60ee2ff629c9d9950101371b995536b921661f668d65f058f0ee56c5e125696",
         "Apache-2.0", "Vaadin", "line"),
    )
)  # fmt: skip


def is_kin(package: str) -> bool:
    """Whether a package is one of IconBed's sets or a sibling, by its name."""
    name = package.split("/")[-1]
    return name.startswith(NEVER) and name not in OTHER_DRAWINGS


def name_words(name: str) -> list[str]:
    """Words of a name in lower case: ``Billed-cap`` gives billed, cap."""
    return re.findall(r"[a-z]+", name.lower())


def fetch(source: Source, folder: Path) -> Path:
    """The tarball of a package, downloaded once with npm and checked against its SHA-256."""
    if is_kin(source.package):
        raise ValueError(f"{source.package} is kin to IconBed's drawings")
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
