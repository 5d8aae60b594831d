"""Fine-tune on GLUE with any regularizer: `accelerate launch run_glue.py --reg rat`. See `--help` and the README."""

import sys

from hf_rat.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["glue", *sys.argv[1:]]))
