"""Cards: what a repository on the Hub says of itself, written from files alone and checked without a network."""

from papo_hub.card.benchmarks import fingerprint, write_benchmark_results, write_entry
from papo_hub.card.check import check_card
from papo_hub.card.escape import plain, text
from papo_hub.card.model import method_name, render_spec, write_card
from papo_hub.card.results import headline, write_eval_results

__all__ = [
    "check_card",
    "fingerprint",
    "headline",
    "method_name",
    "plain",
    "render_spec",
    "text",
    "write_benchmark_results",
    "write_card",
    "write_entry",
    "write_eval_results",
]
