"""Studies with people: a local page that collects 2AFC and JND judgments as the paper did, and what follows from them.

`store`: the study in one SQLite file. `stimuli`: what is judged, from photographs, triplets or the outputs of methods.
`sessions`: the order of trials, practice, sentinels, repeats, breaks. `selection`: which item next. `app`, `serving`
and `page/`: the web page. `votes`: which answers count. `report`, `ranking`, `export`, `calibrate`: what follows.
"""
