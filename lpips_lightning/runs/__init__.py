"""Large measurements on Lightning's Trainer: several devices and machines, resumable, with one result.

Reading order: `launch` (the Trainer and its ranks), `engine` (units of work over ranks), `reading` (batches in worker
processes), `journal` (what is written while running, and how a run resumes), `pairs` (the work of `compare`),
`results` (the merged table and its summary).
"""
