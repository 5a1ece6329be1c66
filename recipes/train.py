"""accelerate launch --config_file accelerate_configs/cpu.yaml recipes/train.py --config recipes/tiny/papo_g.yaml [--key value]"""

import sys

sys.path.pop(0)  # this folder: its evaluate.py would hide the library of that name

from papo_hub.cli import train_command

if __name__ == "__main__":
    sys.exit(train_command(sys.argv[1:]))
