"""What a kind of data implies unless a flag says otherwise: the reference's defaults, an experiment family a class.

Each docstring gives the reference's command and ours, the published error of the ConvNet where one is known, and the
cost in images through the network. A cost is steps × 192 images: 96 labeled ones and 16 unlabeled ones in six views.
"""

from dataclasses import dataclass

ASL_EPOCHS = 300


@dataclass(frozen=True)
class Preset:
    """Settings of a kind of data.

    Args:
        epochs: of SESEMI and of supervised training; an epoch has images // B steps, labeled or not.
        flips: left to right, of labeled images and in the evaluation.
        preprocess: ``zca``, ``gcn``, ``standardize``; None for ZCA up to 48×48 pixels and GCN above.
    """

    epochs: int = 50
    flips: bool = True
    preprocess: str | None = None

    def dropout(self, network: str, method: str) -> tuple[float, float]:
        """Before the class head, and inside the trunk."""
        return 0.2, 0.0

    def epochs_of(self, method: str) -> int:
        """Epochs of a method."""
        return ASL_EPOCHS if method == "asl" else self.epochs


@dataclass(frozen=True)
class Cifar10(Preset):
    """CIFAR-10.

    reference: python train_evaluate_sesemi.py --network convnet --dataset cifar10 --labels 4000 --gpu 0
    ours:      python -m sesemi train --network convnet --dataset cifar10 --labels 4000 --gpu 0

    Published error with 4,000 labels 11.65 %, with 2,000 14.22 %, with 1,000 17.88 %.
    Cost: 50 epochs of 3,125 steps, 30.0 million images, whatever the labels.

    ASL with all labels: 300 epochs of 3,125 steps, 180 million images, evaluated at the end.
    """

    preprocess: str | None = "zca"


@dataclass(frozen=True)
class Cifar100(Preset):
    """CIFAR-100, with or without Tiny Images.

    reference: python train_evaluate_sesemi.py --network convnet --dataset cifar100 --labels 10000 --gpu 0
    ours:      python -m sesemi train --network convnet --dataset cifar100 --labels 10000 --gpu 0

    Published error with 10,000 labels 38.7 %. Cost: 50 epochs of 3,125 steps, 30.0 million images.

    reference: python train_evaluate_sesemi_tinyimages.py --network convnet --extra 500000 --gpu 0
    ours:      python -m sesemi train --network convnet --extra 500000 --gpu 0

    No published figure could be confirmed. Cost: 8 of the 16 unlabeled images a step are extra ones, so 50 epochs of
    6,250 steps, 60.0 million images.
    """

    preprocess: str | None = "zca"


@dataclass(frozen=True)
class Svhn(Preset):
    """SVHN: GCN alone, no flips, more dropout.

    reference: python train_evaluate_sesemi.py --network convnet --dataset svhn --labels 500 --gpu 0
    ours:      python -m sesemi train --network convnet --dataset svhn --labels 500 --gpu 0

    Published error with 500 labels 6.5 %. Cost: 30 epochs of 4,578 steps, 26.4 million images.
    """

    epochs: int = 30
    flips: bool = False
    preprocess: str | None = "gcn"

    def dropout(self, network: str, method: str) -> tuple[float, float]:
        """ConvNet 0.5 at the head and after both pools; WRN 0.5 at the head, in ASL 0.2; NIN 0.2."""
        if network == "convnet":
            return 0.5, 0.5
        return (0.5 if network.startswith("wrn") and method != "asl" else 0.2), 0.0


@dataclass(frozen=True)
class Digits(Preset):
    """scikit-learn's handwritten digits, for the demonstration; a mirrored 2 is no 2."""

    epochs: int = 10
    flips: bool = False
    preprocess: str | None = "gcn"


@dataclass(frozen=True)
class Own(Preset):
    """One's own images, from a folder, tars or arrays."""


PRESETS: dict[str, type[Preset]] = {"cifar10": Cifar10, "cifar100": Cifar100, "svhn": Svhn, "digits": Digits}


def preset_for(dataset: str) -> Preset:
    """The preset of a kind of data, by the manifest's ``dataset``."""
    return PRESETS.get(dataset, Own)()
