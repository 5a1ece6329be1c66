"""accelerate launch --config_file accelerate_configs/cpu.yaml recipes/warmup.py --config recipes/tiny/warmup.yaml [--key value]"""

import sys

sys.path.pop(0)  # this folder: its evaluate.py would hide the library of that name

from papo_hub.cli import warmup_command

if __name__ == "__main__":
    sys.exit(warmup_command(sys.argv[1:]))
