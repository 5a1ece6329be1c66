"""Rows of any source → a dataset for the Hub: parquet with the images inside, statistics, and a card.

Every row is checked as training would check it, and its answer as the reward would grade it, before anything lies under
the final name. A hash of the content tells whether two copies hold the same rows, wherever they lie and however their
images are compressed.
"""

from papo_hub.dataset.build import DatasetReport, build_dataset, source_rows
from papo_hub.dataset.content import check_publishable, content_hash

__all__ = ["DatasetReport", "build_dataset", "check_publishable", "content_hash", "source_rows"]
