"""accelerate launch --config_file accelerate_configs/cpu.yaml recipes/train.py --config recipes/tiny/papo_g.yaml [--key value]"""

import sys

from papo_hub.cli import train_command

if __name__ == "__main__":
    sys.exit(train_command(sys.argv[1:]))
