"""Ship a fine-tuned model: what differs from its start, in bfloat16, and how it was made.

    python tools/ship_mode.py runs/modes/scenes-vqa_pretrained_2000_1000_0 scenes-vqa

Writes data_samples/checkpoints/modes/NAME and says how many bytes it takes. The run should be one
that results/modes records, so that `minibeit3 evaluate --all` has what to compare with.
"""

import argparse
import sys
from pathlib import Path

from minibeit3.data.paths import data_root
from minibeit3.finetune import NOTES
from minibeit3.shipped import recorded_run, ship
from minibeit3.storage import read_json


def main() -> int:
    """1 when results/modes does not record the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a folder that finetune finished")
    parser.add_argument("name", help="of the folder to write")
    given = parser.parse_args()
    folder = data_root() / "checkpoints" / "modes" / given.name
    sys.stdout.write(f"{folder}: {ship(given.run, folder):,} bytes\n")
    if recorded_run(read_json(folder / NOTES)) is None:
        sys.stderr.write("results/modes records no such run: evaluate --all will say so\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
