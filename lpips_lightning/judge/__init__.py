"""Studies with people: a local page that collects 2AFC and JND judgments as the paper did, and what follows from them.

`Study` is the SQLite file of a study, conducted as its `Design` says. `study_from_photographs`, `study_from_triplets`
and `study_from_methods` make one. `counted` returns the answers that count; `preferences` and `rank` rank methods by
them. `simulate` lets simulated observers answer, each one a `SimulatedPerson`, with items by `random_selector`.

Modules: ``records``: what a study is made of. ``store``: its file. ``stimuli``: what is judged. ``sessions``: the order
of trials, practice, sentinels, repeats, breaks. ``selection``: which item next. ``server``: the web page. ``votes``:
which answers count. ``results``: report, ranking, export, calibration. recipes/JUDGE.md tells how to use it.
"""

from typing import TYPE_CHECKING

from lpips_lightning._lazy import lazy_names

__all__ = [
    "Design",
    "SimulatedPerson",
    "Study",
    "counted",
    "preferences",
    "random_selector",
    "rank",
    "simulate",
    "study_from_methods",
    "study_from_photographs",
    "study_from_triplets",
]

if TYPE_CHECKING:
    from lpips_lightning.judge.records import Design
    from lpips_lightning.judge.results.ranking import preferences, rank
    from lpips_lightning.judge.selection import random_selector
    from lpips_lightning.judge.simulated import SimulatedPerson, simulate
    from lpips_lightning.judge.stimuli import study_from_methods, study_from_photographs, study_from_triplets
    from lpips_lightning.judge.store import Study
    from lpips_lightning.judge.votes import counted
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "records": ["Design"],
            "results.ranking": ["preferences", "rank"],
            "selection": ["random_selector"],
            "simulated": ["SimulatedPerson", "simulate"],
            "stimuli": ["study_from_methods", "study_from_photographs", "study_from_triplets"],
            "store": ["Study"],
            "votes": ["counted"],
        },
    )
