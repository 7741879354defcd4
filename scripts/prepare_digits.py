"""Make zoo/data/digits.npz from scikit-learn's copy of the UCI digits: python scripts/prepare_digits.py"""

import numpy as np
from sklearn.datasets import load_digits

from zoo.data.digits import FILE


def main() -> None:
    """Write the images as whole numbers 0..16 with their labels, in scikit-learn's order."""
    digits = load_digits()
    np.savez_compressed(FILE, x=digits.images.astype(np.uint8), y=digits.target.astype(np.uint8))
    print(f"{FILE}: {len(digits.target)} images, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
