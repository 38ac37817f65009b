"""The names of published weights: where each file is, and how a download of it is checked.

Checksums: OpenAI's are in its addresses; open-mmlab's and torchvision's file names have the first 8
digits of theirs. Meta states none: the sums of DINO's files are those that several projects
computed independently and publish; of one file no sum was found. Sizes are stated only where two
sources agree.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class Weights(NamedTuple):
    """A file that can be downloaded.

    Attributes:
      name: what users call it.
      address: an https address; its last part is the name of the file.
      sha256: 64 hexadecimal digits; or the first 8, where no more are published; or "".
      size: in bytes; None where it is not known.
      licence: of the weights, as their publisher states it.
      publisher: who publishes the file.
      kind: "clip", "dino", or "backbone" of a student.
    """

    name: str
    address: str
    sha256: str
    size: int | None = None
    licence: str = ""
    publisher: str = ""
    kind: str = ""

    @property
    def file(self) -> str:
        """The name of the file."""
        return unquote(urlsplit(self.address).path).rpartition("/")[2]


def _openai(name: str, file: str, sha256: str, size: int | None = None) -> Weights:
    address = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"
    return Weights(name, address, sha256, size, "MIT", "OpenAI", "clip")


def _open_mmlab(name: str, file: str) -> Weights:
    address = f"https://download.openmmlab.com/pretrain/third_party/{file}"
    first_digits = file.removesuffix(".pth").rpartition("-")[2]
    return Weights(name, address, first_digits, None, "Apache-2.0", "open-mmlab", "backbone")


def _torchvision(name: str, file: str, sha256: str, size: int | None = None) -> Weights:
    address = f"https://download.pytorch.org/models/{file}"
    return Weights(name, address, sha256, size, "BSD-3-Clause", "torchvision", "backbone")


def _dino(name: str, stem: str, sha256: str = "", size: int | None = None) -> Weights:
    address = f"https://dl.fbaipublicfiles.com/dino/{stem}/{stem}.pth"
    return Weights(name, address, sha256, size, "Apache-2.0", "Meta", "dino")


def _dinov2(name: str, sha256: str, size: int) -> Weights:
    folder = name.removesuffix("_reg")
    stem = folder if folder == name else f"{name}4"
    address = f"https://dl.fbaipublicfiles.com/dinov2/{folder}/{stem}_pretrain.pth"
    return Weights(name, address, sha256, size, "Apache-2.0", "Meta", "dino")


_ALL = (
    _openai(
        "RN50", "RN50.pt",
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", 255_827_503,
    ),
    _openai(
        "RN101", "RN101.pt",
        "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", 291_791_292,
    ),
    _openai(
        "RN50x4", "RN50x4.pt",
        "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    ),
    _openai(
        "RN50x16", "RN50x16.pt",
        "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    ),
    _openai(
        "RN50x64", "RN50x64.pt",
        "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    ),
    _openai(
        "ViT-B/32", "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", 353_976_522,
    ),
    _openai(
        "ViT-B/16", "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", 350_837_078,
    ),
    _openai(
        "ViT-L/14", "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", 932_768_134,
    ),
    _openai(
        "ViT-L/14@336px", "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", 934_088_680,
    ),
    _open_mmlab("resnet50_v1c", "resnet50_v1c-2cccc1ad.pth"),
    _open_mmlab("resnet101_v1c", "resnet101_v1c-e67eebb6.pth"),
    _torchvision(
        "resnet50", "resnet50-0676ba61.pth",
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a", 102_530_333,
    ),
    _torchvision(
        "resnet101", "resnet101-63fe2227.pth",
        "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
    ),
    _dino(
        "dino_vitb8", "dino_vitbase8_pretrain",
        "575f0efc4838938314afa09897a62ed2b87919928b5edcd133abb907328995eb", 343_279_349,
    ),
    _dino(
        "dino_vitb16", "dino_vitbase16_pretrain",
        "bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e", 343_242_485,
    ),
    _dino("dino_vits8", "dino_deitsmall8_pretrain"),
    _dino(
        "dino_vits16", "dino_deitsmall16_pretrain",
        "1566d50496f27f52f07fea6094fa29b2fdd6fae89da65bdd3ebc3b24ef6b7eb7", 86_710_517,
    ),
    _dinov2(
        "dinov2_vits14",
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9", 88_283_115,
    ),
    _dinov2(
        "dinov2_vitb14",
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73", 346_378_731,
    ),
    _dinov2(
        "dinov2_vitl14",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428", 1_217_586_395,
    ),
    _dinov2(
        "dinov2_vitg14",
        "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3", 4_546_108_579,
    ),
    _dinov2(
        "dinov2_vits14_reg",
        "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb", 88_291_785,
    ),
    _dinov2(
        "dinov2_vitb14_reg",
        "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71", 346_393_545,
    ),
    _dinov2(
        "dinov2_vitl14_reg",
        "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51", 1_217_607_321,
    ),
    _dinov2(
        "dinov2_vitg14_reg",
        "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283", 4_546_140_349,
    ),
)  # fmt: skip

KNOWN = {weights.name: weights for weights in _ALL}
BY_FILE = {weights.file: weights for weights in _ALL}


def nearest(text: str) -> list[str]:
    """Known names that `text` may be meant for, the likeliest first; none: it looks like a path."""
    lowered = {name.lower(): name for name in KNOWN}
    found = difflib.get_close_matches(text.lower(), lowered, n=3, cutoff=0.7)
    return [lowered[name] for name in found]
