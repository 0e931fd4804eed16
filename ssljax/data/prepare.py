"""Download a TensorFlow data set and write it in a format with random access, unless it is there.

python -m ssljax.data.prepare cifar10
"""

import sys

import tensorflow_datasets as tfds

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    try:
        tfds.builder(sys.argv[1], file_format="array_record").download_and_prepare()
    except ImportError as e:
        sys.exit(
            f"error: TFDS prepares {sys.argv[1]} with a package that is missing ({e.name}): "
            "install it and run this again."
        )
    except ValueError as e:  # No such name, or no such version of it.
        sys.exit(f"error: {str(e).splitlines()[0]}")
