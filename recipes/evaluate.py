"""accelerate launch recipes/evaluate.py MODEL_OR_RUN_OR_ID [--benchmarks NAME ...] [--option value ...]"""

import sys

sys.path.pop(0)  # this folder: its evaluate.py would hide the library of that name

from papo_hub.cli import evaluate_command

if __name__ == "__main__":
    sys.exit(evaluate_command(sys.argv[1:]))
