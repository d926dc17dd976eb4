"""Cuts the figures that the tests need out of a full set of reference outputs.

    python tests/data/extract.py FOLDER

FOLDER holds CASE.json and CASE.npz, made by running the authors' PyTorch code on weights
drawn from a seed. Only results are stored here; `tests/reference.py` draws the weights.
"""

import json
import pathlib
import sys

import numpy as np

CASES = (
    "fc_mnist",
    "fc_mnist_bias",
    "conv_cifar10",
    "resnet20_c10",
    "resnet20_c10_bn",
    "vgg16bn_c10",
)
SCHEDULES = ("synflow_exp100", "synflow_lin100", "synflow_1it", "mag", "snip", "grasp")
SAMPLES = 40  # one-shot scores kept of each layer, evenly spaced


def main(folder: pathlib.Path) -> None:
    here = pathlib.Path(__file__).parent
    arrays = {}
    for case in CASES:
        full = json.loads((folder / f"{case}.json").read_text())
        masks = {
            name: {key: mask[key] for key in ("kept", "total_kept", "sha_total")}
            for name, mask in full["masks"].items()
            if name.startswith(SCHEDULES) and name.count("_") == 1 + (name[:3] == "syn")
        }
        small = {
            "spec": full["spec"],
            "R": full["R"],
            "masks": masks,
        }
        text = json.dumps(small, indent=1)
        (here / f"{case}.json").write_text(text + "\n")
        if case == "vgg16bn_c10":
            continue
        with np.load(folder / f"{case}.npz") as npz:
            for i in range(len(full["layer_order"])):
                scores = npz[f"synflow_f64/{i}"].ravel()
                places = np.linspace(0, scores.size - 1, SAMPLES).astype(int)
                arrays[f"{case}/scores/{i}"] = scores[places]
                for name in ("snip", "grasp"):
                    scores = npz[f"{name}_f64/{i}"].ravel()
                    arrays[f"{case}/{name}/{i}"] = scores[places]
            if case == "resnet20_c10":  # starting points for a single round
                for name in ("synflow_exp100_c1/f64", "synflow_exp100_c2/f64"):
                    arrays[f"{case}/mask/{name}"] = npz[f"mask/{name}"]
                for name in ("1", "2", "3"):
                    name = f"synflow_1it_c{name}/f32"
                    arrays[f"{case}/mask/{name}"] = npz[f"mask/{name}"]
    np.savez_compressed(here / "reference.npz", **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
