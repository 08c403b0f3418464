"""Large measurements on Lightning's Trainer: several devices and machines, resumable, with one result.

Reading order: `launch` (the Trainer and its ranks), `processes` (ranks that a process starts), `engine` (units of work
over ranks), `ranks` (how they end together), `reading` (batches in worker processes), `read_ahead` (their threads),
`journal` (what is written while running, and how a run resumes), `pairs` (the work of `compare`), `judgments` (of
`bapps evaluate`), `opinions` (of `correlate`), `results` (the merged table and its summary).
"""
