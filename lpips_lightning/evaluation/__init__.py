"""Agreement of distances with human judgments: the paper's 2AFC and JND scores, and correlation with MOS.

`parse_method` builds a `Method` from its name, `measure` computes its distances (`Judged`) on data sets, and `score`
turns these into `Score` objects. `read_distances` reads distances computed elsewhere. `TABLE_5` holds the paper's
scores.

``lpips-lightning bapps evaluate`` prints Table 5 for any method next to the paper's values; ``lpips-lightning
correlate`` prints SRCC, PLCC and KRCC with mean opinion scores (MOS).
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
