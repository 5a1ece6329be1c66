"""python recipes/push_dataset.py SOURCE OWNER/NAME [--split train test] [--tag v1.0] [--dry_run]"""

import sys

from papo_hub.cli import push_dataset_command

if __name__ == "__main__":
    sys.exit(push_dataset_command(sys.argv[1:]))
