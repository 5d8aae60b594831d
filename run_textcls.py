"""Classify texts with any regularizer: `accelerate launch run_textcls.py --reg rat`. See `--help` and the README."""

import sys

from hf_rat.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["textcls", *sys.argv[1:]]))
