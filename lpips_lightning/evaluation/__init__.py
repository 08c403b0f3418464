"""Agreement of distances with people: the 2AFC and JND scores of the paper for any methods, mean opinion scores.

`parse_method` makes a `Method` of its name, `measure` its distances (`Judged`) on a dataset, and `score` a `Score` of
these. `read_distances` reads distances that something else computed. `TABLE_5` holds the paper's numbers.

``lpips-lightning bapps evaluate`` prints the paper's Table 5 for any method beside the paper's own numbers;
``lpips-lightning correlate`` prints SRCC, PLCC and KRCC with mean opinion scores.
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = ["TABLE_5", "Judged", "Method", "Score", "measure", "parse_method", "read_distances", "score"]

if TYPE_CHECKING:
    from lpips_lightning.evaluation.benchmark import Judged, Score, measure, read_distances, score
    from lpips_lightning.evaluation.methods import Method, parse_method
    from lpips_lightning.evaluation.table5 import TABLE_5
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "benchmark": ["Judged", "Score", "measure", "read_distances", "score"],
            "methods": ["Method", "parse_method"],
            "table5": ["TABLE_5"],
        },
    )
