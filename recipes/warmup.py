"""accelerate launch --config_file accelerate_configs/cpu.yaml recipes/warmup.py --config recipes/tiny/warmup.yaml [--key value]"""

import sys

from papo_hub.cli import warmup_command

if __name__ == "__main__":
    sys.exit(warmup_command(sys.argv[1:]))
