"""python recipes/push_dataset.py SOURCE OWNER/NAME [--split train test] [--tag v1.0] [--dry_run]"""

import sys

sys.path.pop(0)  # this folder: its evaluate.py would hide the library of that name

from papo_hub.cli import push_dataset_command

if __name__ == "__main__":
    sys.exit(push_dataset_command(sys.argv[1:]))
